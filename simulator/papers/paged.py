"""Paper 07, PagedAttention: blocks on demand let more requests run in the same memory."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from random import Random

from decode_pool.continuous_batching import ContinuousBatching
from engine.batch import BatchPolicy
from engine.plan import StepPlan
from engine.request import Request
from engine.reserve_max import ReserveMax
from simulator.cluster import SimulatedCluster
from simulator.papers.arms import OPT_13B, QUICK, highest, one
from simulator.papers.rows import Row
from simulator.report import summarise
from simulator.setup import PoolSetup, Setup, fcfs
from simulator.workload.arrivals import Arrival
from simulator.workload.generators import lognormal, make, poisson

SLOTS, LONGEST, BLOCK = 15_700, 2048, 16


def traffic(rate: float, count: int, seed: int) -> list[Arrival]:
    """ShareGPT-like: prompts with a median of 100 tokens, answers of 250."""
    rng = Random(seed)
    return make(poisson(rate, rng), lognormal(100, 400, rng, high=1024),
                lognormal(250, 620, rng, high=1000), count)  # fmt: skip


def arm(name: str, lengths: Mapping[str, int]) -> BatchPolicy:
    """`lengths` are the true totals, which only the oracle may see."""

    def buddy(request: Request) -> int:
        return 1 << (lengths[request.id] - 1).bit_length()

    inner = ContinuousBatching(2560)
    sizes = {"oracle": buddy, "max": lambda request: LONGEST}
    return ReserveMax(inner, SLOTS, sizes[name]) if name in sizes else inner


def run(name: str, rate: float, count: int, seed: int) -> SimulatedCluster:
    arrivals = traffic(rate, count, seed)
    return one(fcfs(lambda: arm(name, _totals(arrivals))), arrivals, OPT_13B, blocks=SLOTS // BLOCK)


@dataclass(frozen=True, slots=True)
class Saturated:
    """Means over the steps of an instance at which somebody waits for memory: requests that run, and the
    share of the slots in the blocks they hold that holds a token."""

    running: float
    useful: float


def saturated(name: str, count: int, seed: int, block: int = BLOCK) -> Saturated:
    """All that a workload far above capacity shows of a way to give out memory, step by step."""
    arrivals = traffic(50.0, count, seed)
    policy = arm(name, _totals(arrivals))
    pool = PoolSetup("decode", 1, OPT_13B, SLOTS // block, fcfs(lambda: policy), block_size=block)
    cluster = SimulatedCluster(Setup((pool,), links=QUICK, beat=5.0, coasting=False))
    instance = cluster.members["decode-0"].instance
    steps = running = 0
    useful = 0.0

    def look(plan: StepPlan) -> None:
        nonlocal steps, running, useful
        core = instance.core
        if len(core.queue) and cluster.clock.now() > arrivals[-1].at:
            steps += 1
            running += len(core.running)
            useful += sum(len(one) for one in core.running) / (core.pool.used * block)

    instance.foresee(look)
    cluster.add(arrivals)
    cluster.run()
    cluster.check()
    return Saturated(running / steps, useful / steps)


def _totals(arrivals: Sequence[Arrival]) -> dict[str, int]:
    return {str(i): one.prompt_tokens + one.output_tokens for i, one in enumerate(arrivals)}


def capacity(name: str, count: int, steps: int) -> float:
    """The highest rate with a mean latency per token of a fifth of a second."""
    return highest(
        lambda rate: summarise(run(name, rate, count, 1))["per_token"]["mean"] <= 0.2, 0.1, 8.0, steps
    )


def rows(*, quick: bool) -> list[Row]:
    """Rates only in full: a short trace ends before the queue of the better arm has grown."""
    work = "ShareGPT-like, OPT-13B, 15,700 slots"
    running = {name: saturated(name, 400, 1).running for name in ("paged", "oracle", "max")}
    found = [
        Row("07", "PagedAttention", work, "saturated", f"requests in a step, over Orca ({name})", "requests",
            running[name], running["paged"], published, better="more")
        for name, published in (("oracle", 2.2), ("max", 4.3))
    ]  # fmt: skip
    if quick:
        return found
    rates = {name: capacity(name, 3000, 7) for name in ("paged", "oracle", "max")}
    return found + [
        Row("07", "PagedAttention", work, "≤ 0.2 s a token", f"capacity, over Orca ({name})", "requests/s",
            rates[name], rates["paged"], published, better="more")
        for name, published in (("oracle", 1.7), ("max", 2.7))
    ]  # fmt: skip
