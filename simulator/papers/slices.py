"""Paper 20, slice-level scheduling (arXiv 2406.13511): batches for S steps whose time is known beforehand.

static          FCFS batches until their last answer ends, as many as fit at their longest: the paper's SLS
reserving       iteration-level batches that reserve the longest answer: its conservative ILS
slices          batches by length for a slice, placed where least is to do; the KV is kept between slices
paged           tandem's own iteration-level batches on blocks, which the paper does not compare with
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import count
from random import Random
from statistics import pstdev

from decode_pool.continuous_batching import ContinuousBatching
from decode_pool.slice_batches import SliceBatches, slice_time
from decode_pool.slices import SliceTime, spread
from engine.batch import BatchPolicy
from engine.cost_model import Batch, CostModel
from engine.reserve_max import ReserveMax
from engine.sequence import Sequence as LiveSequence
from engine.sequence import SequenceKey
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


def uneven(requests: int, instances: int) -> list[Arrival]:
    """A long prompt comes as often as it is the first instance's turn: the worst for placing in turn."""
    rng = Random(5)
    return [
        Arrival(0.02 * i, rng.randint(400, 1000) if i % instances == 0 else 40, 40) for i in range(requests)
    ]


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


class Reread(SliceTime):
    """The estimator of batches of which nobody has his KV any more."""

    __slots__ = ()

    def seconds(self, count: int, length: int, steps: int, fresh: int | None = None) -> float:
        return SliceTime.seconds(self, count, length, steps)


class Dropping(SliceBatches):
    """The paper's own variant: the KV is dropped at the end of a slice, and computed again with the next.

    It is also the CostModel that has to pay for that, of the one instance that it plans.
    """

    def __init__(self, cost: CostModel, steps: int) -> None:
        super().__init__(Reread(TIME.prefill, TIME.decode), SLOTS, steps=steps)
        self._cost = cost
        self._owed: tuple[tuple[int, int], ...] = ()

    def _serve(self, here: Mapping[SequenceKey, LiveSequence], now: float) -> Mapping[SequenceKey, int]:
        batch = super()._serve(here, now)
        if all(len(here[key].output) == start for key, start in batch.items()):
            self._owed = tuple((len(here[key]), 0) for key, start in batch.items() if start)
        return batch

    def seconds(self, batch: Batch) -> float:
        again, self._owed = self._owed, ()
        return self._cost.seconds(Batch(batch.prefills + again, batch.decodes, batch.context))


def dropped(arrivals: Sequence[Arrival], steps: int) -> SimulatedCluster:
    """One instance that serves slices as the paper does."""
    policy = Dropping(OPT_13B, steps)
    pool = PoolSetup("decode", 1, policy, SLOTS // 16, fcfs(lambda: policy))
    return simulate(Setup((pool,), QUICK, max_tokens=LONGEST), arrivals)


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
    return [
        *found,
        _spread_row(work, load, arrivals, "the last long answer decides, which nobody foresees"),
        _spread_row(f"one prompt in {INSTANCES} is long, OPT-13B, {INSTANCES} × A100", "50 requests/s",
                    uneven(requests, INSTANCES), ""),
    ]  # fmt: skip


def _spread_row(work: str, load: str, arrivals: Sequence[Arrival], note: str) -> Row:
    turns, ours = (run("slices", arrivals, placing=placing) for placing in ("round robin", "max-min"))
    return Row("20", "slices", work, load, "spread of finishing times, over round robin", "s",
               imbalance(turns), imbalance(ours), None, note=note)  # fmt: skip
