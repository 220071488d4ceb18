"""Paper 12, ORCA (OSDI'22): the batch is chosen anew at every step."""

from __future__ import annotations

from random import Random
from statistics import median

from decode_pool.continuous_batching import ContinuousBatching
from engine.batch import BatchPolicy
from engine.reserve_max import ReserveMax
from simulator.cluster import SimulatedCluster
from simulator.papers.arms import OPT_13B_A100, highest, one
from simulator.papers.baselines import DecodesFirst
from simulator.papers.rows import Row
from simulator.setup import fcfs
from simulator.workload.arrivals import Arrival
from simulator.workload.generators import make, poisson, uniform

SLOTS, BATCH = 60_000, 32
LATENCIES = (0.06, 0.1)
"""Seconds per output token: two and four times a step of decodes."""


def traffic(rate: float, count: int, seed: int) -> list[Arrival]:
    """Prompts of 32 to 512 tokens, answers of 1 to 128, as in the paper."""
    rng = Random(seed)
    return make(poisson(rate, rng), uniform(32, 512, rng), uniform(1, 128, rng), count)


def arm(name: str, batch: int) -> BatchPolicy:
    if name == "request-level":
        return DecodesFirst(batch)
    return ReserveMax(ContinuousBatching(8192), SLOTS)


def run(name: str, rate: float, count: int, seed: int, batch: int = BATCH) -> SimulatedCluster:
    return one(
        fcfs(lambda: arm(name, batch)),
        traffic(rate, count, seed),
        OPT_13B_A100,
        blocks=SLOTS // 16,
        max_sequences=batch if name == "request-level" else BATCH,
        max_tokens=128,
    )


def latency(cluster: SimulatedCluster, *, together: bool) -> float:
    """Median seconds per output token, from arrival to the answer's return.

    Requests that run `together`, from one first token on, return together when the last has ended.
    """
    records = cluster.records.records.values()
    returned: dict[float, float] = {}
    for record in records:
        returned[record.first] = max(returned.get(record.first, 0.0), record.last)
    return median(
        ((returned[record.first] if together else record.last) - record.arrival.at) / record.tokens
        for record in records
    )


def capacity(name: str, bound: float, count: int, steps: int, batch: int = BATCH) -> float:
    """The highest rate whose median latency is within the bound."""
    together = name == "request-level"
    return highest(
        lambda rate: latency(run(name, rate, count, 1, batch), together=together) <= bound, 0.1, 30.0, steps
    )


def rows(*, quick: bool) -> list[Row]:
    count, steps = (400, 6) if quick else (1000, 8)
    found = []
    for bound in LATENCIES:
        static = max(capacity("request-level", bound, count, steps, batch) for batch in (8, 16, 32))
        ours = capacity("iteration-level", bound, count, steps)
        found.append(
            Row("12", "ORCA", "prompts 32–512, answers 1–128, OPT-13B, A100", f"median ≤ {bound} s a token",
                "capacity", "requests/s", static, ours, 36.9, better="more",
                note="the published figure includes another engine and pipeline bubbles")
        )  # fmt: skip
    return found
