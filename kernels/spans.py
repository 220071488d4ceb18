"""How the rows of one flattened step divide into sequences."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Spans:
    """Row by row: the chunks one after another, then one row for each decoding sequence.

    Per sequence, in that order: `counts`, its rows in this step (> 1 for the first `chunks` sequences, 1 for
    the rest); `lengths`, its positions after the step; `blocks`, its block table, which covers its length.
    """

    counts: Sequence[int]
    lengths: Sequence[int]
    blocks: Sequence[Sequence[int]]
    chunks: int
    block_size: int

    @property
    def chunk_rows(self) -> int:
        """Rows that belong to chunks; the decoding rows follow."""
        return sum(self.counts[: self.chunks])
