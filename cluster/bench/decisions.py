"""How long the scheduler thinks: decisions on made-up loads, with the statuses of all instances in between.

statuses of N instances, 4 a second each ─┐
requests, RATE a second ──────────────────┴▶ Scheduler.place, one core ─▶ time of each, decisions a second
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from random import Random

from cluster.bench.statistics import Distribution, Value
from engine.status import InstanceStatus
from global_scheduler.affinity import prefix_keys
from global_scheduler.placement import DECODE, PREFILL
from global_scheduler.scheduler import Scheduler, SchedulerSettings
from global_scheduler.view import Summary

SIZES = (16, 64, 256, 512, 1024)
BEATS = 4
"""Statuses a second of each instance, as `control.beat` has it."""

RATE = 2000
"""Requests a second: what one controller is to decide."""

STEMS = 64
"""Different beginnings that prompts share."""

LIVES = 2.0
"""Seconds that a request stays at an instance in this load."""


class Decisions(Value):
    """Of one size of cluster. `per_second` counts statuses and decisions together, on one core."""

    instances: int
    decisions: int
    seconds: Distribution
    per_second: float


class _Cluster:
    """Instances that tell what was sent to them, and forget it after LIVES seconds."""

    def __init__(self, instances: int, seed: int) -> None:
        prefills = max(1, instances // 4)
        roles = [PREFILL] * prefills + [DECODE] * max(1, instances - prefills)
        self.names = [f"{role}-{number}" for number, role in enumerate(roles)]
        self._roles = dict(zip(self.names, roles, strict=True))
        self._arrived: dict[str, list[float]] = {name: [] for name in self.names}
        self._rng = Random(seed)

    def send(self, name: str, now: float) -> None:
        self._arrived[name].append(now)

    def status(self, name: str, now: float) -> InstanceStatus:
        arrived = self._arrived[name]
        running = sum(at > now - LIVES for at in reversed(arrived[-256:]))
        waiting = self._rng.randrange(3)
        return InstanceStatus(
            name,
            self._roles[name],
            running=running,
            waiting=waiting,
            waiting_tokens=400 * waiting,
            blocks_total=20_000,
            blocks_used=40 * running,
            arrivals=len(arrived),
        )


def measure(settings: SchedulerSettings, instances: int, decisions: int, seed: int = 0) -> Decisions:
    """So many decisions in a cluster of that size, after half as many that are not counted."""
    cluster, scheduler = _Cluster(instances, seed), Scheduler(settings)
    for name in cluster.names:
        scheduler.observe(cluster.status(name, 0.0), 0.0)
    beats = _beats(cluster.names)
    warm = decisions // 2
    asked = _requests(warm + decisions, seed)
    samples: list[float] = []
    spent = due = 0.0
    # Time of this thread alone: the question is what a core can do, not how busy the machine is.
    clock = time.thread_time
    for number, summary in enumerate(asked):
        now = number / RATE
        due += instances * BEATS / RATE
        statuses = [cluster.status(next(beats), now) for _ in range(int(due))]
        due -= len(statuses)
        begun = clock()
        for status in statuses:
            scheduler.observe(status, now)
        middle = clock()
        placement = scheduler.place(summary, now)
        end = clock()
        for name in {placement.prefill, placement.decode}:
            cluster.send(name, now)
        if number >= warm:
            samples.append(end - middle)
            spent += end - begun
    return Decisions(
        instances=instances,
        decisions=decisions,
        seconds=Distribution.of(samples),
        per_second=decisions / spent,
    )


def _beats(names: Sequence[str]) -> Iterator[str]:
    while True:
        yield from names


def _requests(count: int, seed: int) -> list[Summary]:
    """Prompts of 64 to 4,000 tokens; half of them begin as others do."""
    rng = Random(seed)
    stems = [prefix_keys([rng.randrange(50_000)] * 4096) for _ in range(STEMS)]
    made = []
    for number in range(count):
        tokens = rng.randrange(64, 4000)
        keys = stems[rng.randrange(STEMS)][: tokens // 64] if rng.random() < 0.5 else ()
        rest = tokens // 64 - len(keys)
        own = tuple(rng.getrandbits(64) for _ in range(rest))
        made.append(Summary(str(number), tokens, 256, prefix=(*keys, *own)))
    return made
