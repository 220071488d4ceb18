"""One prompt chunk and as many decodes as there are: the batches of SARATHI.

After SARATHI (arXiv 2308.16369, section 4.3): the chunk fills the step up to a multiple of the tile of the
matrix kernels, decodes ride along in it almost for nothing, and there is never a second chunk. The gain needs
prompts and decodes on one instance; where an instance only reads prompts there is nothing to ride along.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from collections.abc import Sequence as SequenceOf
from itertools import chain

from engine.batch import Share, due
from engine.sequence import Phase, Sequence


class DecodeMaximal:
    """`chunk` tokens in a step, decodes among them, a multiple of `tile`.

    Decodes beyond the chunk run all the same; then the step is filled to the next tile.
    """

    def __init__(self, chunk: int, tile: int = 128) -> None:
        self.chunk = -(-chunk // tile) * tile
        self.tile = tile

    def share(self, running: SequenceOf[Sequence], waiting: Iterable[Sequence], now: float) -> list[Share]:
        shares = [Share(one, one.remaining) for one in running if one.phase is Phase.DECODE]
        decodes = len(shares)
        step = max(self.chunk, -(-(decodes + 1) // self.tile) * self.tile)
        for sequence in chain((one for one in running if one.phase is Phase.PREFILL), waiting):
            shares.append(Share(sequence, min(due(sequence), step - decodes)))
            break
        return shares

    def steady(self, running: SequenceOf[Sequence], now: float) -> int:
        """Decodes are never held back: for ever."""
        return sys.maxsize
