"""Paper 18, Llumnix (OSDI'24): running requests move to where there is room, before they are preempted.

Four arms, since most of what is gained over round robin is gained by dispatch alone:

    round robin    INFaaS++: least KV asked for, queue included    freeness    freeness and migration
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import count
from random import Random
from statistics import fmean
from typing import Any

from decode_pool.continuous_batching import ContinuousBatching
from engine.cost_model import LinearCost
from global_scheduler.placement import Placement
from global_scheduler.rescheduling import ReschedulingSettings
from global_scheduler.scheduler import Scheduler
from global_scheduler.view import Summary
from simulator.cluster import SimulatedCluster
from simulator.network import LinkSettings
from simulator.papers.rows import Row
from simulator.report import summarise
from simulator.setup import PoolSetup, Setup, fcfs
from simulator.simulate import simulate
from simulator.workload.arrivals import Arrival
from simulator.workload.generators import make, poisson, power_law

LLAMA_7B_A10 = LinearCost(0.003, 0.0225, 0.25e-3, 8.7e-7)
"""13.5 GB of weights and 0.5 MB of KV a token at 600 GB/s."""

BLOCKS, MEAN, LONGEST = 851, 256, 6144
ARMS = ("round robin", "least KV", "freeness", "full")
Dispatch = Callable[[Scheduler, Summary, float], Placement]


def round_robin() -> Dispatch:
    turns = count()

    def place(scheduler: Scheduler, summary: Summary, now: float) -> Placement:
        loads = scheduler.view.loads(now)
        there = loads[next(turns) % len(loads)].instance
        return Placement(there, there, "it is its turn")

    return place


def least_kv() -> Dispatch:
    def place(scheduler: Scheduler, summary: Summary, now: float) -> Placement:
        there = min(scheduler.view.loads(now), key=lambda load: (load.demand, load.instance))
        placement = Placement(there.instance, there.instance, "least KV is asked for there")
        scheduler.view.send(summary.id, placement.shares(summary), now)
        return placement

    return place


def traffic(rate: float, requests: int, seed: int) -> list[Arrival]:
    rng = Random(seed)
    prompt, output = power_law(MEAN, LONGEST, rng), power_law(MEAN, LONGEST, rng)
    return make(poisson(rate, rng), prompt, output, requests)


def run(
    arm: str,
    arrivals: Sequence[Arrival],
    *,
    instances: int = 16,
    settings: ReschedulingSettings | None = None,
) -> SimulatedCluster:
    dispatch = {"round robin": round_robin, "least KV": least_kv}.get(arm)
    pool = PoolSetup(
        "decode", instances, LLAMA_7B_A10, BLOCKS, fcfs(lambda: ContinuousBatching(2048)), max_sequences=256
    )
    setup = Setup(
        (pool,),
        links=LinkSettings(bandwidth=8e9, latency=0.0005),
        kv_bytes=524_288,
        dispatch=dispatch() if dispatch else None,
        rescheduling=(settings or ReschedulingSettings()) if arm == "full" else None,
        max_length=2 * LONGEST + 16,
        max_tokens=LONGEST,
    )
    return simulate(setup, arrivals)


def loss(cluster: SimulatedCluster) -> float:
    """Preemptions per request: each costs its prompt and answer so far again."""
    records = cluster.records.records.values()
    return sum(record.preemptions for record in records) / len(records)


def pooled(arm: str, rate: float, *, requests: int, seeds: Sequence[int], instances: int) -> dict[str, Any]:
    """Means over seeds of one arm at one load."""
    clusters = [run(arm, traffic(rate, requests, seed), instances=instances) for seed in seeds]
    reports = [summarise(cluster) for cluster in clusters]
    downtimes = [move.downtime for cluster in clusters for move in cluster.moves if move.moved]
    return {
        "p99 prefill": fmean(report["ttft"]["p99"] for report in reports),
        "mean prefill": fmean(report["ttft"]["mean"] for report in reports),
        "p99 decode": fmean(report["tpot"]["p99"] for report in reports),
        "preemptions": fmean(loss(cluster) for cluster in clusters),
        "moves": sum(report["migrations"]["moved"] for report in reports),
        "longest downtime": max(downtimes, default=0.0),
    }


def rows(*, quick: bool) -> list[Row]:
    instances, requests, seeds = (8, 800, (0, 1)) if quick else (16, 4000, (0, 1, 2, 3, 4))
    found = []
    work = f"power-law lengths, LLaMA-7B, {instances} × A10"
    for per_instance in (0.9, 1.1, 1.3):
        rate = per_instance * instances
        arms = {arm: pooled(arm, rate, requests=requests, seeds=seeds, instances=instances) for arm in ARMS}
        load = f"{rate:g} requests/s, {len(seeds)} seeds"
        for arm in ARMS[:3]:
            published = {"round robin": 34.4, "least KV": None, "freeness": 14.8}[arm]
            found.append(
                Row("18", "Llumnix", work, load, f"p99 time to first token, over {arm}", "s",
                    arms[arm]["p99 prefill"], arms["full"]["p99 prefill"], published)
            )  # fmt: skip
        found.append(
            Row("18", "Llumnix", work, load, "preemptions of a request, over freeness", "",
                arms["freeness"]["preemptions"], arms["full"]["preemptions"], 3.4)
        )  # fmt: skip
    return found
