"""Short jobs first without knowing which are short: FastServe's skip-join multi-level feedback queue.

    level 0   quantum q          a request joins at the first level whose quantum covers its prefill,
    level 1   quantum 2q         and sinks a level when it has had its level's quantum of service,
    …                            so those that turn out long give way to those that come

After FastServe (arXiv 2305.05920). Every step takes the best `batch` of all that run or wait; a running
request that is not among them keeps its KV and waits (its blocks count, so the pool may veto whom to admit).
So places are not what holds anybody up: as many may have KV as there is room for. Of those in a step, prompts
are read in the order of rank too, one that is half read behind a better one that comes; and nobody sinks
while his prompt is read, which the quantum of his level was to cover.
Who has waited for `starvation` seconds is promoted to the head of level 0. Within a level the order is that
of arrival at it, not round robin: taking turns would have everybody's KV resident for nothing.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from collections.abc import Sequence as SequenceOf
from dataclasses import dataclass

from engine.batch import BatchPolicy, Share, due
from engine.cost_model import Batch, CostModel
from engine.sequence import Phase, Sequence, SequenceKey


@dataclass(frozen=True, slots=True)
class Levels:
    """`quantum` of level 0 in seconds, `ratio` between one level's and the next.

    `batch` sequences share a step. Artifact: 10 ms, 2, 16. `starvation` in seconds; the artifact's 3 s.
    Without `skip_join` all begin at level 0: the naive MLFQ.
    """

    quantum: float = 0.010
    ratio: float = 2.0
    batch: int = 16
    starvation: float = 3.0
    skip_join: bool = True
    count: int = 16


@dataclass(slots=True)
class _Job:
    level: int
    order: int
    served: float = 0.0
    idle_since: float = 0.0
    promoted: bool = False


class MultiLevelQueue:
    """Both the WaitingQueue and the BatchPolicy of one engine core, since a job keeps its level as it goes
    from one to the other; a sequence that moves to another instance takes it along. `inner` decides how many
    tokens those that were picked get."""

    by_priority = False

    def __init__(self, levels: Levels, inner: BatchPolicy, cost: CostModel) -> None:
        self.levels = levels
        self.inner = inner
        self._cost = cost
        self._jobs: dict[SequenceKey, _Job] = {}
        self._waiting: dict[SequenceKey, Sequence] = {}
        self._given: list[SequenceKey] = []
        self._at = 0.0
        self._orders = 0

    @property
    def at_once(self) -> int:
        return self.levels.batch

    def add(self, sequence: Sequence, *, front: bool = False) -> None:
        assert sequence.key not in self._waiting, f"{sequence.key} waits already"
        self._waiting[sequence.key] = sequence

    def remove(self, key: SequenceKey) -> Sequence | None:
        return self._waiting.pop(key, None)

    def __len__(self) -> int:
        return len(self._waiting)

    def __iter__(self) -> Iterator[Sequence]:
        for sequence in self._waiting.values():
            self._job(sequence, self._at)
        return iter(sorted(self._waiting.values(), key=self._rank))

    def share(self, running: SequenceOf[Sequence], waiting: Iterable[Sequence], now: float) -> list[Share]:
        """`waiting` is this queue, in its order."""
        self._account(running, now)
        every = [*running, *waiting]
        for sequence in every:
            job = self._job(sequence, now)
            if now - job.idle_since >= self.levels.starvation and job.level:
                self._place(job, 0)
                job.promoted = True
        picked = sorted(every, key=self._rank)[: self.levels.batch]
        shares = self.inner.share(
            [one for one in picked if one.phase is Phase.DECODE],
            [one for one in picked if one.phase is not Phase.DECODE],
            now,
        )
        self._given = [share.sequence.key for share in shares]
        for key in self._given:
            self._jobs[key].idle_since = math.inf
        for sequence in every:
            job = self._jobs[sequence.key]
            if job.idle_since == math.inf and sequence.key not in self._given:
                job.idle_since = now
        self._at = now
        return shares

    def before(self, first: Sequence, second: Sequence) -> bool:
        return self._rank(first) < self._rank(second)

    def latest(self, sequences: Iterable[Sequence], now: float) -> list[Sequence]:
        """By the estimated next scheduled time, the latest first; equal ones by rank."""
        every = list(sequences)
        for sequence in every:
            self._job(sequence, now)  # one that came from elsewhere, or parted, since the last step
        mine = sorted(every, key=self._rank, reverse=True)
        executed = self._executed()
        return sorted(mine, key=lambda one: self._next_scheduled(one, executed, now), reverse=True)

    def next_scheduled(self, sequence: Sequence, now: float) -> float:
        """Seconds until it may get a step: FastServe's ENST.

        The sooner of its promotion and of the time in which all at higher levels sink to its own, `batch` at
        once: min(starvation - waited, Σ quanta they need / batch).
        """
        return self._next_scheduled(sequence, self._executed(), now)

    def _next_scheduled(self, sequence: Sequence, executed: Mapping[int, float], now: float) -> float:
        job = self._jobs[sequence.key]
        waited = 0.0 if job.idle_since == math.inf else now - job.idle_since
        promoted = max(0.0, self.levels.starvation - waited) if job.level else math.inf
        return min(promoted, executed[job.level])

    def _executed(self) -> dict[int, float]:
        """Of each level with jobs: the seconds until all above have sunk to it."""
        count: dict[int, int] = {}
        served: dict[int, float] = {}
        for job in self._jobs.values():
            count[job.level] = count.get(job.level, 0) + 1
            served[job.level] = served.get(job.level, 0.0) + job.served
        times: dict[int, float] = {}
        need, above, last = 0.0, 0, 0
        for level in sorted(count):
            need += above * (self._until(level) - self._until(last)) - (served[last] if above else 0.0)
            times[level] = need / self.levels.batch
            above, last = above + count[level], level
        return times

    def level(self, key: SequenceKey) -> int:
        """Where a job is; for tests and for the operator."""
        return self._jobs[key].level

    def _account(self, running: SequenceOf[Sequence], now: float) -> None:
        """The last step is over: who was in it has been served that long, and may sink."""
        elapsed = now - self._at
        alive = {one.key for one in running} | self._waiting.keys()
        reading = {one.key for one in running if one.phase is Phase.PREFILL}
        for key in self._given:
            job = self._jobs.get(key)
            if job is None:
                continue
            job.served += elapsed
            job.idle_since = now
            full = job.served >= self._quantum(job.level) - 1e-9
            if full and key not in reading and job.level < self.levels.count - 1:
                self._place(job, job.level + 1, front=True)
                job.promoted = False
        for sequence in (*running, *self._waiting.values()):
            job = self._jobs.get(sequence.key)
            if job is not None:
                sequence.level, sequence.served = job.level, job.served
        for key in [key for key in self._jobs if key not in alive]:
            del self._jobs[key]

    def _job(self, sequence: Sequence, now: float) -> _Job:
        job = self._jobs.get(sequence.key)
        if job is None:
            level = sequence.level
            if level is None:
                level = self._entry(sequence) if self.levels.skip_join else 0
            level = min(level, self.levels.count - 1)
            job = _Job(level, self._next(), sequence.served, idle_since=now)
            self._jobs[sequence.key] = job
        return job

    def _entry(self, sequence: Sequence) -> int:
        """The first level whose quantum covers the prefill."""
        seconds = self._cost.seconds(Batch(((due(sequence), 0),)))
        level = math.ceil(math.log(max(seconds / self.levels.quantum, 1.0), self.levels.ratio))
        return min(level, self.levels.count - 1)

    def _place(self, job: _Job, level: int, *, front: bool = False) -> None:
        """Demoted jobs go before all that are at the lower level."""
        job.level, job.served = level, 0.0
        job.order = -self._next() if front else self._next()

    def _quantum(self, level: int) -> float:
        return self.levels.quantum * math.pow(self.levels.ratio, level)

    def _until(self, level: int) -> float:
        """Seconds of service from level 0 until a job sinks to `level`."""
        return sum(self._quantum(one) for one in range(level))

    def _next(self) -> int:
        self._orders += 1
        return self._orders

    def _rank(self, sequence: Sequence) -> tuple[int, bool, int]:
        """Who starved goes before all others of level 0, in the order of promotion."""
        job = self._jobs[sequence.key]
        return job.level, not job.promoted, job.order
