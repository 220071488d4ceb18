"""How long a step takes, predicted: what budgets, slices and the simulator are computed from."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol

from engine.plan import Work


@dataclass(frozen=True, slots=True)
class Batch:
    """What a step's time depends on.

    `prefills` has (new tokens, tokens computed before them) for each prompt chunk, `decodes` counts the
    sequences that compute one token, and `context` sums the tokens that those attend to, their own included.
    """

    prefills: tuple[tuple[int, int], ...] = ()
    decodes: int = 0
    context: int = 0

    @property
    def prefill_tokens(self) -> int:
        return sum(tokens for tokens, _ in self.prefills)

    @property
    def tokens(self) -> int:
        return self.prefill_tokens + self.decodes

    @property
    def sequences(self) -> int:
        return len(self.prefills) + self.decodes


class CostModel(Protocol):
    """Predicts steps. The same batch always takes the same time."""

    def seconds(self, batch: Batch) -> float: ...


def batch_of(works: Iterable[Work]) -> Batch:
    """The batch of a plan: one token that is drawn from is a decode, everything else is prefill."""
    prefills = []
    decodes = context = 0
    for work in works:
        count = len(work.tokens)
        if count == 1 and work.draw is not None and work.draw.position:
            decodes += 1
            context += work.start + 1
        else:
            prefills.append((count, work.start))
    return Batch(tuple(prefills), decodes, context)


@dataclass(frozen=True, slots=True)
class LinearCost:
    """A roofline: a step costs `base`, the larger of reading the weights and computing, and reading the KV.

        base + max(floor, per_token · tokens) + per_context · tokens attended to

    All in seconds. With `tile`, tokens are rounded up to its next multiple, as matrix kernels do. A chunk
    attends to what was computed before it and, on the average, to half of itself.
    """

    base: float
    floor: float
    per_token: float
    per_context: float = 0.0
    tile: int = 1

    def seconds(self, batch: Batch) -> float:
        tokens = -(-batch.tokens // self.tile) * self.tile
        read = batch.context + sum(before + new // 2 for new, before in batch.prefills)
        return self.base + max(self.floor, self.per_token * tokens) + self.per_context * read
