"""Batches that stay together for a slice of S steps, so that their time and memory are known beforehand.

    pool ─ every interval ─▶ batches by length (slices.batches) ─▶ in turn, S steps each ─▶ unfinished: pool

The variant that keeps the KV between slices: a sequence whose batch is not served keeps its blocks, and the
end of a slice is a point at which a request can move without having computed anything in vain. A slice that
ends costs nothing then, so it may be shorter than the paper's 128 steps, which have to pay for a prefill.
"""

from __future__ import annotations

import sys
from collections import deque
from collections.abc import Iterable, Mapping
from collections.abc import Sequence as SequenceOf
from typing import NamedTuple

from decode_pool.continuous_batching import ContinuousBatching
from decode_pool.slices import Job, SliceTime, batches, fit, interval
from engine.batch import Share, due
from engine.cost_model import Batch, CostModel
from engine.sequence import Sequence, SequenceKey


def slice_time(cost: CostModel) -> SliceTime:
    """The estimator that is closest to a model of single steps."""
    lengths, counts = (64, 512, 2048), (1, 8, 32)
    prefills = [(n, one, cost.seconds(Batch(((one, 0),) * n))) for n in counts for one in lengths]
    decodes = [(n, one, cost.seconds(Batch((), n, n * one))) for n in counts for one in lengths]
    return fit(prefills, decodes)


class Slices(NamedTuple):
    """Those that were served whole: how many, the seconds that they took, and those predicted for them."""

    served: int = 0
    seconds: float = 0.0
    predicted: float = 0.0


class SliceBatches:
    """A BatchPolicy. `steps` are those of a slice, `slots` the tokens of KV of which a batch may take `fill`.

    `budget` bounds the tokens of a step while prompts are read. Batches are formed again after `interval` of
    what is planned, at least `least` seconds, or when there are none left; those formed before go first, so
    everybody has a slice before anybody has two more. `served` may be read in any thread.
    """

    def __init__(
        self,
        time: SliceTime,
        slots: int = sys.maxsize,
        *,
        steps: int = 32,
        fill: float = 0.9,
        most: int = 256,
        budget: int = 2048,
        least: float = 3.0,
    ) -> None:
        self._time = time
        self.slots = slots
        self._fill = fill
        self.steps = steps
        self._most = most
        self._inner = ContinuousBatching(budget)
        self._least = least
        self._queue: deque[tuple[float, list[SequenceKey]]] = deque()
        self._current: dict[SequenceKey, int] = {}
        self._again = 0.0
        self._began = self._predicted = 0.0
        self.served = Slices()

    def share(self, running: SequenceOf[Sequence], waiting: Iterable[Sequence], now: float) -> list[Share]:
        here = {one.key: one for one in running}
        here |= {one.key: one for one in waiting}
        batch = self._serve(here, now)
        served = [one for one in running if one.key in batch]
        rest = batch.keys() - {one.key for one in served}
        return self._inner.share(served, [one for one in here.values() if one.key in rest], now)

    def steady(self, running: SequenceOf[Sequence], now: float) -> int:
        """Until the slice ends, if nobody runs beside its batch."""
        if any(one.key not in self._current for one in running):
            return 0
        longest = max(len(one.output) - self._current[one.key] for one in running)
        return min(max(0, self.steps - longest), sys.maxsize)

    def latest(self, sequences: Iterable[Sequence], now: float) -> list[Sequence]:
        """Who is not in the batch, the newest first; then who is."""
        newest = list(sequences)[::-1]
        return sorted(newest, key=lambda one: one.key in self._current)

    def before(self, first: Sequence, second: Sequence) -> bool:
        return first.key in self._current and second.key not in self._current

    def _serve(self, here: Mapping[SequenceKey, Sequence], now: float) -> Mapping[SequenceKey, int]:
        """The batch whose turn it is: who of it is still here, with the length of its output at the start."""
        self._current = {key: start for key, start in self._current.items() if key in here}
        if any(len(here[key].output) - start >= self.steps for key, start in self._current.items()):
            self._current = {}
            before = self.served
            seconds, predicted = before.seconds + now - self._began, before.predicted + self._predicted
            self.served = Slices(before.served + 1, seconds, predicted)
        if now >= self._again or not (self._queue or self._current):
            self._form(here, now)
        while self._queue and not self._current:
            self._predicted, keys = self._queue.popleft()
            self._began = now
            self._current = {key: len(here[key].output) for key in keys if key in here}
            if not self._current and not self._queue:
                self._form(here, now)
        return self._current

    def _form(self, here: Mapping[SequenceKey, Sequence], now: float) -> None:
        """Batch whoever is in none, behind those that are planned."""
        planned = {key for _, keys in self._queue for key in keys}
        pool = [one for key, one in here.items() if key not in planned and key not in self._current]
        jobs = [Job(len(one), fresh=due(one) > 1) for one in pool]
        for indices in batches(jobs, self._time, self.steps, int(self.slots * self._fill), self._most):
            members = [jobs[index] for index in indices]
            fresh = sum(job.fresh for job in members)
            seconds = self._time.seconds(len(members), members[-1].length, self.steps, fresh)
            self._queue.append((seconds, [pool[index].key for index in indices]))
        self._again = now + interval([sum(seconds for seconds, _ in self._queue)], least=self._least)
