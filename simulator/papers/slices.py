"""Paper 20, slice-level scheduling (arXiv 2406.13511): batches for S steps whose time is known beforehand.

static          FCFS batches until their last answer ends, as many as fit at their longest: the paper's SLS
reserving       iteration-level batches that reserve the longest answer: its conservative ILS
slices          batches by length for a slice, placed where least is to do; the KV is kept between slices
paged           tandem's own iteration-level batches on blocks, which the paper does not compare with
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import count
from random import Random
from statistics import pstdev

from decode_pool.continuous_batching import ContinuousBatching
from decode_pool.slice_batches import SliceBatches, slice_time
from decode_pool.slices import spread
from engine.batch import BatchPolicy
from engine.reserve_max import ReserveMax
from global_scheduler.placement import Placement
from global_scheduler.scheduler import Scheduler
from global_scheduler.view import Summary
from simulator.cluster import SimulatedCluster
from simulator.papers.arms import OPT_13B, QUICK
from simulator.papers.baselines import DecodesFirst
from simulator.papers.rows import Row
from simulator.setup import PoolSetup, Setup, fcfs
from simulator.simulate import simulate
from simulator.workload.arrivals import Arrival
from simulator.workload.generators import lognormal, make, poisson

INSTANCES, SLOTS, LONGEST, SLICE = 8, 15_700, 1024, 32
ARMS = ("static", "reserving", "slices", "paged")
PUBLISHED = 4.158
"""Up to 315.8 % more throughput than static batches."""


TIME = slice_time(OPT_13B)


def traffic(rate: float, requests: int, seed: int) -> list[Arrival]:
    """Heavy-tailed answers of at most 1,024 tokens, prompts of the same limit."""
    rng = Random(seed)
    prompt = lognormal(100, 700, rng, high=LONGEST)
    return make(poisson(rate, rng), prompt, lognormal(80, 600, rng, high=LONGEST), requests)


def policy(arm: str, steps: int = SLICE) -> BatchPolicy:
    if arm == "static":
        return DecodesFirst(SLOTS // (2 * LONGEST))
    if arm == "reserving":
        return ReserveMax(ContinuousBatching(2048), SLOTS, lambda request: 2 * LONGEST)
    if arm == "slices":
        return SliceBatches(TIME, SLOTS, steps=steps)
    return ContinuousBatching(2048)


def round_robin() -> Callable[[Scheduler, Summary, float], Placement]:
    turns = count()

    def place(scheduler: Scheduler, summary: Summary, now: float) -> Placement:
        loads = scheduler.view.loads(now)
        there = loads[next(turns) % len(loads)].instance
        return Placement(there, there, "it is its turn")

    return place


def max_min(steps: int = SLICE) -> Callable[[Scheduler, Summary, float], Placement]:
    """Where least is to do, in seconds of the next slice of all that are there."""

    def place(scheduler: Scheduler, summary: Summary, now: float) -> Placement:
        loads = scheduler.view.loads(now)
        work = [
            TIME.seconds(
                load.requests, load.demand * load.block_size // max(1, load.requests), steps, load.queued
            )
            for load in loads
        ]
        there = loads[spread([1.0], work)[0]].instance
        placement = Placement(there, there, f"{min(work):.2f} s of work are the least")
        scheduler.view.send(summary.id, placement.shares(summary), now)
        return placement

    return place


def run(arm: str, arrivals: Sequence[Arrival], *, steps: int = SLICE, instances: int = INSTANCES,
        placing: str = "") -> SimulatedCluster:  # fmt: skip
    placing = placing or ("max-min" if arm == "slices" else "round robin")
    pool = PoolSetup("decode", instances, OPT_13B, SLOTS // 16, fcfs(lambda: policy(arm, steps)))
    dispatch = max_min(steps) if placing == "max-min" else round_robin()
    return simulate(Setup((pool,), QUICK, max_tokens=LONGEST, dispatch=dispatch), arrivals)


def throughput(cluster: SimulatedCluster) -> float:
    """Requests a second from the first arrival to the last answer."""
    records = cluster.records.records.values()
    return len(records) / (max(one.last for one in records) - min(one.arrival.at for one in records))


def imbalance(cluster: SimulatedCluster) -> float:
    """Standard deviation of the times at which instances ended their last step, in seconds."""
    return pstdev(member.instance.ended for member in cluster.members.values())


def rows(*, quick: bool) -> list[Row]:
    requests, rate = (600, 30.0) if quick else (2000, 30.0)
    arrivals = traffic(rate, requests, 1)
    runs = {arm: run(arm, arrivals) for arm in ARMS}
    ours = throughput(runs["slices"])
    work, load = (
        "heavy-tailed answers ≤ 1024, OPT-13B, 8 × A100",
        f"{rate:g} requests/s, more than can be served",
    )
    found = [
        Row("20", "slices", work, load, f"throughput, over {name}", "requests/s", throughput(runs[arm]), ours,
            published, better="more", note=note)
        for arm, name, published, note in (
            ("static", "static batches", PUBLISHED, "KV kept between slices"),
            ("reserving", "reserving the longest", None, ""),
            ("paged", "tandem's own paged batches", None, "iteration-level batches on blocks are better"),
        )
    ]  # fmt: skip
    turns = run("slices", arrivals, placing="round robin")
    found.append(
        Row("20", "slices", work, load, "spread of finishing times, over round robin", "s", imbalance(turns),
            imbalance(runs["slices"]), None)
    )  # fmt: skip
    return found
