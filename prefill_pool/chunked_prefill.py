"""Prompts in chunks under a token budget, each chunk ending where a block ends.

After SARATHI (arXiv 2308.16369): a chunk attends to all chunks before it, so together they are one
prefill; decodes ride along, and the budget bounds the whole batch, not the chunk alone.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from collections.abc import Sequence as SequenceOf
from itertools import chain

from engine.batch import Share, due
from engine.sequence import Phase, Sequence


class ChunkedPrefill:
    """Decodes first, one token each; then the prefill under way, then new ones, oldest first.

    `token_budget` bounds the tokens of a step; decodes run even where they alone exceed it, and a prompt
    gets a token in any case. A chunk that is not the last of its prompt ends at a multiple of `align`
    tokens if the budget has room for so many. With the KV block as `align`, each chunk of a handoff leaves
    in whole blocks.
    """

    def __init__(self, token_budget: int, align: int) -> None:
        self.token_budget = token_budget
        self.align = align

    def share(self, running: SequenceOf[Sequence], waiting: Iterable[Sequence], now: float) -> list[Share]:
        shares = [Share(one, one.remaining) for one in running if one.phase is Phase.DECODE]
        left = max(self.token_budget - len(shares), 1)
        for sequence in chain((one for one in running if one.phase is Phase.PREFILL), waiting):
            tokens = due(sequence)
            if tokens > left:
                shares.append(Share(sequence, self._chunk(sequence, left)))
                break
            shares.append(Share(sequence, tokens))
            left -= tokens
            if left == 0:
                break
        return shares

    def steady(self, running: SequenceOf[Sequence], now: float) -> int:
        """Decodes are never held back: for ever."""
        return sys.maxsize

    def _chunk(self, sequence: Sequence, left: int) -> int:
        """Tokens of a chunk that is not the last."""
        over = (len(sequence) - due(sequence) + left) % self.align
        return left - over if left - over >= self.align else left
