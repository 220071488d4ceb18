"""No decode ever waits for a prompt longer than its objective allows: stall-free batches.

After Sarathi-Serve (OSDI'24, algorithm 3). Each step has every decode, then the prompts under way, then new
ones, within a budget: the most tokens whose predicted time is within the objective for the time between two
tokens. The prediction counts the context that the decodes attend to now, so the budget shrinks as it grows.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from collections.abc import Sequence as SequenceOf
from itertools import chain

from engine.batch import Share, due
from engine.cost_model import Batch, CostModel
from engine.sequence import Phase, Sequence


class StallFree:
    """`tbt` is the objective in seconds, `tile` the multiple to which budgets are cut, `most` their bound.

    A chunk that is not the last of its prompt has `least` tokens or more. The first prompt is never starved:
    where nobody decodes it gets a tile, and beside decodes `least` tokens, by which a step may then exceed
    the objective and `most`.
    """

    def __init__(
        self, cost: CostModel, tbt: float, *, tile: int = 128, most: int = 8192, least: int = 16
    ) -> None:
        self._cost = cost
        self.tbt = tbt
        self.tile = tile
        self.most = most
        self.least = least

    def budget(self, decodes: int, context: int, before: int = 0) -> int:
        """Tokens of a step with so many decodes of so much summed context, of which a prompt that has
        `before` tokens computed may fill what the decodes leave: a multiple of `tile`, 0 if not even one
        fits the objective."""
        if self._seconds(self.most, decodes, context, before) <= self.tbt:
            return self.most
        low, high = 0, self.most // self.tile
        while high - low > 1:
            middle = (low + high) // 2
            if self._seconds(middle * self.tile, decodes, context, before) <= self.tbt:
                low = middle
            else:
                high = middle
        return low * self.tile

    def share(self, running: SequenceOf[Sequence], waiting: Iterable[Sequence], now: float) -> list[Share]:
        shares = [Share(one, one.remaining) for one in running if one.phase is Phase.DECODE]
        decodes = len(shares)
        context = sum(len(share.sequence) for share in shares)
        left: int | None = None
        for sequence in chain((one for one in running if one.phase is Phase.PREFILL), waiting):
            if left is None:
                before = len(sequence) - due(sequence)
                budget = self.budget(decodes, context, before)
                left = max(self.least, budget - decodes) if decodes else max(self.tile, budget)
            tokens = min(due(sequence), left)
            if tokens < min(self.least, due(sequence)) or not tokens:
                break
            shares.append(Share(sequence, tokens))
            left -= tokens
        return shares

    def steady(self, running: SequenceOf[Sequence], now: float) -> int:
        """Decodes are never held back: for ever."""
        return sys.maxsize

    def _seconds(self, tokens: int, decodes: int, context: int, before: int) -> float:
        prompt = tokens - decodes
        prefills = ((prompt, before),) if prompt > 0 else ()
        return self._cost.seconds(Batch(prefills, decodes, context))
