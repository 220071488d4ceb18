"""Paper 18, Llumnix (OSDI'24): running requests move to where there is room, before they are preempted.

Four arms, since most of what is gained over round robin is gained by dispatch alone:

    round robin    INFaaS++: least KV asked for, queue included    freeness    freeness and migration
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import count
from random import Random
from statistics import fmean

from decode_pool.continuous_batching import ContinuousBatching
from engine.cost_model import LinearCost
from global_scheduler.autoscaling import AutoscalingSettings
from global_scheduler.placement import Placement, PlacementSettings
from global_scheduler.rescheduling import ReschedulingSettings
from global_scheduler.scheduler import Scheduler, SchedulerSettings
from global_scheduler.view import Summary
from simulator.cluster import SimulatedCluster
from simulator.network import LinkSettings
from simulator.papers.rows import Row
from simulator.report import summarise
from simulator.setup import PoolSetup, Setup, fcfs
from simulator.simulate import simulate
from simulator.workload.arrivals import Arrival
from simulator.workload.generators import gamma, make, power_law

LLAMA_7B_A10 = LinearCost(0.003, 0.0225, 0.25e-3, 8.7e-7)
"""13.5 GB of weights and 0.5 MB of KV a token at 600 GB/s."""

BLOCKS, MEAN, LONGEST = 851, 256, 6144
URGENT, HEADROOM = "urgent", 100
"""Blocks that an instance with urgent requests keeps clear: 1,600 tokens, as in the artifact."""

ABOVE = 1.125
"""Requests a second and instance above the knee, where some wait."""

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


def traffic(rate: float, requests: int, seed: int, cv: float = 1.0, urgent: float = 0.0) -> list[Arrival]:
    """Power-law lengths with a mean of 256 tokens and at most 6,144; a share of the requests is urgent."""
    rng = Random(seed)
    prompt, output = power_law(MEAN, LONGEST, rng), power_law(MEAN, LONGEST, rng)
    made = make(gamma(rate, cv, rng), prompt, output, requests)
    return [replace(one, tenant=URGENT) if rng.random() < urgent else one for one in made]


def run(
    arm: str,
    arrivals: Sequence[Arrival],
    *,
    instances: int = 16,
    settings: ReschedulingSettings | None = None,
    urgent: bool = False,
    autoscaling: AutoscalingSettings | None = None,
) -> SimulatedCluster:
    """One arm; `urgent` gives priority to those who are."""
    dispatch = {"round robin": round_robin, "least KV": least_kv}.get(arm)
    pool = PoolSetup(
        "decode", instances, LLAMA_7B_A10, BLOCKS, fcfs(lambda: ContinuousBatching(2048)),
        max_sequences=256, start_up=20.0,
    )  # fmt: skip
    setup = Setup(
        (pool,),
        links=LinkSettings(bandwidth=8e9, latency=0.0005),
        kv_bytes=524_288,
        dispatch=dispatch() if dispatch else None,
        rescheduling=(settings or ReschedulingSettings()) if arm == "full" else None,
        autoscaling={"decode": autoscaling} if autoscaling else {},
        urgent_tenants=frozenset({URGENT}) if urgent else frozenset(),
        scheduler=SchedulerSettings(
            PlacementSettings(headroom=HEADROOM if urgent else 0), queue_limit=1_000_000
        ),
        max_length=2 * LONGEST + 16,
        max_tokens=LONGEST,
    )
    return simulate(setup, arrivals)


def loss(cluster: SimulatedCluster) -> float:
    """Preemption loss: seconds of a request without a token since it was preempted, on the average."""
    return fmean(record.lost for record in cluster.records.records.values())


def pooled(arm: str, rate: float, *, requests: int, seeds: Sequence[int], instances: int) -> dict[str, float]:
    """Means over seeds of one arm at one load, in seconds."""
    clusters = [run(arm, traffic(rate, requests, seed), instances=instances) for seed in seeds]
    reports = [summarise(cluster) for cluster in clusters]
    return {
        "p99 prefill": fmean(report["ttft"]["p99"] for report in reports),
        "mean": fmean(report["e2e"]["mean"] for report in reports),
        "p99 decode": fmean(report["tpot"]["p99"] for report in reports),
        "loss": fmean(loss(cluster) for cluster in clusters),
    }


def rows(*, quick: bool) -> list[Row]:
    """All four arms below, at and above the knee; then priorities and autoscaling."""
    instances, requests, seeds = (8, 1200, (0,)) if quick else (16, 4000, (0, 1, 2, 3, 4))
    found = []
    work = f"power-law lengths, LLaMA-7B, {instances} × A10"
    metrics = {
        "p99 prefill": ("p99 time to first token", {"round robin": 34.4, "freeness": 14.8}),
        "mean": ("mean completion time", {"round robin": 2.0, "freeness": 1.5}),
        "loss": ("preemption loss of a request", {"round robin": 6.25, "freeness": 3.38}),
    }
    for each in (0.625, 0.875, ABOVE):
        rate = each * instances
        arms = {arm: pooled(arm, rate, requests=requests, seeds=seeds, instances=instances) for arm in ARMS}
        load = f"{rate:g} requests/s, {len(seeds)} seed{'s' * (len(seeds) > 1)}"
        found += [
            Row("18", "Llumnix", work, load, f"{metric}, over {arm}", "s",
                arms[arm][key], arms["full"][key], published.get(arm))
            for key, (metric, published) in metrics.items()
            for arm in ARMS[:3]
        ]  # fmt: skip
    return found + _urgent_rows(seeds, requests, instances) + elastic_rows(requests // 2)


def urgent_means(seeds: Sequence[int], requests: int, instances: int) -> dict[bool, tuple[float, float]]:
    """Mean completion of (urgent, other) requests without and with priorities, above the knee, all seeds
    together."""
    means = {}
    for urgent in (False, True):
        settings = ReschedulingSettings(headroom=HEADROOM if urgent else 0)
        records = [
            record
            for seed in seeds
            for record in run(
                "full",
                traffic(ABOVE * instances, requests, seed, urgent=0.1),
                instances=instances,
                urgent=urgent,
                settings=settings,
            ).records.records.values()
        ]
        first = fmean(one.e2e for one in records if one.arrival.tenant == URGENT)
        means[urgent] = first, fmean(one.e2e for one in records if one.arrival.tenant != URGENT)
    return means


def _urgent_rows(seeds: Sequence[int], requests: int, instances: int) -> list[Row]:
    means = urgent_means(seeds, requests, instances)
    work = f"power-law lengths, 10 % urgent, {instances} × A10"
    load = f"{ABOVE * instances:g} requests/s, {len(seeds)} seed{'s' * (len(seeds) > 1)}"
    return [
        Row("18", "Llumnix", work, load, f"mean completion time of {whose} requests, priorities on", "s",
            means[False][i], means[True][i], published, note=note)
        for i, whose, published, note in (
            (0, "urgent", 1.5, ""), (1, "other", None, "published: 4.5 % later"),
        )
    ]  # fmt: skip


def elastic_rows(requests: int) -> list[Row]:
    """Bursts that begin before instances have started: what migration is worth where both arms are scaled,
    and what scaling saves where enough instances stay for the bursts to be served as by all of them."""
    arrivals = traffic(4.0, requests, 0, cv=4.0)
    eager = AutoscalingSettings(least=1, most=8, out_patience=2.0, in_patience=10.0, cool_down=5.0)
    ready = replace(eager, least=4, out_below=20.0, in_above=70.0, out_patience=0.0)

    def measure(arm: str, scaling: AutoscalingSettings | None) -> tuple[float, float]:
        report = summarise(run(arm, arrivals, instances=8, autoscaling=scaling))
        return report["gpu_hours"], report["ttft"]["p99"]

    found = []
    for work, over, theirs, ours, published in (
        ("1 to 8 × A10", "freeness, scaled too", ("freeness", eager), ("full", eager), (1.19, 12.2)),
        ("4 to 8 × A10", "8 instances", ("full", None), ("full", ready), (None, None)),
    ):
        base, mine = measure(*theirs), measure(*ours)
        found += [
            Row("18", "Llumnix", f"power-law lengths, {work}", "4 requests/s, CV 4", f"{metric}, over {over}",
                unit, base[i], mine[i], published[i])
            for i, (metric, unit) in enumerate((("GPU hours", "h"), ("p99 time to first token", "s")))
        ]  # fmt: skip
    return found
