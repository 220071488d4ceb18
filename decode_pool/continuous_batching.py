"""Batches per iteration: every running decode, and prompts in what the token budget leaves.

After ORCA (OSDI'22): the batch is chosen anew at each step, requests join and leave between two
steps, and they join in the order of arrival, up to the first that finds no room.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from collections.abc import Sequence as SequenceOf
from itertools import chain

from engine.batch import Share, due
from engine.sequence import Phase, Sequence


class ContinuousBatching:
    """Decodes first, one token each; then prefills under way, then new ones, oldest first.

    `token_budget` bounds the tokens of a step; decodes run even where they alone exceed it, and a prompt gets
    a token in any case, so that it does not wait as long as they go on.
    """

    def __init__(self, token_budget: int) -> None:
        self.token_budget = token_budget

    def share(self, running: SequenceOf[Sequence], waiting: Iterable[Sequence], now: float) -> list[Share]:
        shares = [Share(one, one.remaining) for one in running if one.phase is Phase.DECODE]
        left = max(self.token_budget - len(shares), 1)
        for sequence in chain((one for one in running if one.phase is Phase.PREFILL), waiting):
            tokens = min(due(sequence), left)
            shares.append(Share(sequence, tokens))
            left -= tokens
            if left == 0:
                break
        return shares

    def steady(self, running: SequenceOf[Sequence], now: float) -> int:
        """Decodes are never held back: for ever."""
        return sys.maxsize
