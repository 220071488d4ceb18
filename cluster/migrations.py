"""The moves that the cluster made, each with reason, stages, bytes, downtime and outcome, and the totals."""

from __future__ import annotations

import time
from bisect import bisect_left
from collections import Counter, deque
from collections.abc import Callable

from cluster import control_pb2 as pb
from migration.moved import COMMITTED

DOWNTIMES = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0)
"""Upper bounds of the buckets of downtime, in seconds."""

STAGES = (1, 2, 3, 4, 8, 16, 32)


class Migrations:
    """A ring of the last `limit` moves; ids count from 1. Totals are of all since the controller began."""

    def __init__(self, limit: int, *, clock: Callable[[], float] = time.time) -> None:
        self._ring: deque[pb.Migration] = deque(maxlen=limit)
        self._clock = clock
        self._last = 0
        self._counts: Counter[tuple[str, str]] = Counter()
        self._downtimes = [0] * (len(DOWNTIMES) + 1)
        self._stages = [0] * (len(STAGES) + 1)
        self._downtime_sum = self._stages_sum = 0.0

    def add(self, migration: pb.Migration) -> pb.Migration:
        """Remember a move that has come to its end; gives it with its id and time."""
        self._last += 1
        migration.id, migration.time = self._last, self._clock()
        self._ring.append(migration)
        self._counts[migration.cause, migration.outcome] += 1
        if migration.outcome == COMMITTED:
            self._downtimes[bisect_left(DOWNTIMES, migration.downtime)] += 1
            self._downtime_sum += migration.downtime
            self._stages[bisect_left(STAGES, migration.stages)] += 1
            self._stages_sum += migration.stages
        return migration

    def listed(self, request_id: str = "") -> list[pb.Migration]:
        """Those still remembered, oldest first; with an id or a client's name, those of that request."""
        return [one for one in self._ring if not request_id or names(one.request_id, request_id)]

    def totals(self) -> pb.MigrationTotals:
        """For the metrics."""
        return pb.MigrationTotals(
            counts=[
                pb.MigrationCount(cause=cause, outcome=outcome, count=count)
                for (cause, outcome), count in sorted(self._counts.items())
            ],
            downtimes=self._downtimes,
            downtime_sum=self._downtime_sum,
            stages=self._stages,
            stages_sum=self._stages_sum,
        )


def names(request_id: str, wanted: str) -> bool:
    """Whether `wanted` is that request's id, or the name that its client gave it."""
    return request_id == wanted or request_id.rpartition("~")[0] == wanted
