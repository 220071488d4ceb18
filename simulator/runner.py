"""A Runner that computes nothing: it knows how long answers become, and how long steps take."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol, runtime_checkable

import numpy as np

from engine.cost_model import Batch, CostModel, LinearCost, batch_of
from engine.plan import Drawn, StepPlan, StepResult, Work
from engine.sequence import Sequence as LiveSequence
from simulator.cost_tables.interpolation import FloatArray

EOS = 0
TOKEN = 1
_EOS, _TOKEN = (Drawn(EOS),), (Drawn(TOKEN),)


@runtime_checkable
class Decodes(Protocol):
    """A cost model that predicts many steps of pure decode at once, each as `seconds` would."""

    def decodes(self, count: int, contexts: FloatArray) -> FloatArray: ...


def _decodes(cost: CostModel) -> Callable[[int, FloatArray], FloatArray] | None:
    """Many steps at once, where the cost model can or is linear; None else."""
    if isinstance(cost, Decodes):
        return cost.decodes
    if isinstance(cost, LinearCost):
        return lambda count, contexts: cost.seconds(Batch((), count)) + cost.per_context * contexts
    return None


class SimulatedRunner:
    """Draws TOKEN until an answer is as long as `lengths` says for its request, and EOS then.

    So nobody but the runner knows beforehand how long an answer becomes, as in life. `swap` is how many
    seconds a block takes between device and host, one after the other in both directions.
    """

    def __init__(self, cost: CostModel, lengths: dict[str, int], overhead: float, swap: float = 0.0) -> None:
        self._cost = cost
        self._decodes = _decodes(cost)
        self._lengths = lengths
        self._overhead = overhead
        self._swap = swap

    def seconds(self, plan: StepPlan) -> float:
        """What the step waits for is swapped before it computes, everything else while it does."""
        computing = self._cost.seconds(batch_of(plan.works)) if plan.works else 0.0
        if not plan.out and not plan.into:
            return computing + self._overhead
        used = {block for work in plan.works for block in work.blocks}
        filled = {block for _, block in plan.into}
        first = sum(block in used for _, block in plan.into)
        first += sum(block in used or block in filled for block, _ in plan.out)
        rest = len(plan.out) + len(plan.into) - first
        return max(computing, rest * self._swap) + first * self._swap + self._overhead

    def run(self, plan: StepPlan) -> StepResult:
        return StepResult(tuple(self._drawn(work) for work in plan.works))

    def _drawn(self, work: Work) -> tuple[Drawn, ...]:
        if work.draw is None:
            return ()
        return _EOS if work.draw.position + 1 >= self._lengths[work.request_id] else _TOKEN

    def left(self, running: Sequence[LiveSequence]) -> int:
        """Steps until the first of those who run ends, with the one that ends it."""
        lengths = self._lengths
        return min([lengths[one.request.id] - len(one.output) for one in running])

    def ended(self, running: Sequence[LiveSequence]) -> list[LiveSequence]:
        """Those who have had all their tokens."""
        lengths = self._lengths
        return [one for one in running if lengths[one.request.id] == len(one.output)]

    def ends(self, running: Sequence[LiveSequence], steps: int, now: float) -> FloatArray:
        """When each of so many steps of pure decode ends, if the first begins `now`."""
        count = len(running)
        first = sum(map(len, running))
        if self._decodes is not None:
            contexts = np.arange(first, first + count * steps, count, dtype=np.float64)
            seconds = self._decodes(count, contexts)
        else:
            contexts_of = range(first, first + count * steps, count)
            seconds = np.array([self._cost.seconds(Batch((), count, one)) for one in contexts_of])
        ends = np.empty(steps + 1)
        ends[0] = now
        np.add(seconds, self._overhead, out=ends[1:])
        return ends.cumsum()[1:]
