"""Paper 13, VTC (OSDI'24): equal service for tenants that want unequally much, at the same throughput."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from random import Random

from decode_pool.continuous_batching import ContinuousBatching
from engine.cost_model import LinearCost
from engine.queues.fair import FairQueue
from engine.queues.fcfs import FCFSQueue
from engine.reserve_max import ReserveMax
from engine.service import Counters
from simulator.cluster import SimulatedCluster
from simulator.papers.arms import one
from simulator.papers.rows import Row
from simulator.workload.arrivals import Arrival
from simulator.workload.generators import fixed, lognormal, make, poisson

A10G = LinearCost(0.008, 0.022, 0.00023, 1.1e-6)
"""An A10G-like card with Llama-2-7B: a share does not depend on it, the throughput of about 900 tokens a
second that was measured there does."""

POOL = 10_000
"""Tokens of KV cache."""

CHAT = (
    296, 262, 199, 120, 67, 66, 56, 46, 44, 43, 40, 36, 31, 26, 25, 23, 22, 22, 19, 19, 12, 11, 7, 3, 2, 2, 1
)  # fmt: skip
"""Requests of 27 tenants in ten minutes: `fair_bench/real_trace.pkl` of the artifact."""

RPM = 5
"""Of the published arm that refuses."""


def overload(seconds: float, seed: int = 42, scale: float = 1.0) -> list[Arrival]:
    """Two tenants want 1.5 and 3 requests a second of 256 + 256 tokens, together twice what the card can.

    Times `scale`; the more, the sooner both of them wait.
    """
    rng = Random(seed)
    arrivals = [
        arrival
        for tenant, rate in (("0", 1.5 * scale), ("1", 3.0 * scale))
        for arrival in make(poisson(rate, rng), fixed(256), fixed(256), int(rate * seconds), tenant=tenant)
    ]
    return sorted(arrivals, key=lambda arrival: arrival.at)


def equal_rates(tenants: int, seconds: float) -> list[Arrival]:
    """Everybody wants the same, and more than there is: with other rates FCFS would look fair too."""
    return [
        Arrival(0.5 * i + 0.01 * tenant, 256, 256, tenant=str(tenant))
        for i in range(int(2 * seconds))
        for tenant in range(tenants)
    ]


def chat(seconds: float = 600.0, seed: int = 42) -> list[Arrival]:
    """Tenants that want as unequally much as those of the artifact's sample of a public chat; about
    2.5 requests a second, a little more than the card can serve.
    """
    rng = Random(seed)
    arrivals = [
        arrival
        for tenant, requests in enumerate(CHAT)
        for arrival in make(
            poisson(requests / 600, rng),
            lognormal(40, 432, rng, high=1021),
            lognormal(211, 513, rng, high=977),
            math.ceil(requests * seconds / 600),
            tenant=str(tenant),
        )
    ]
    return sorted(arrivals, key=lambda arrival: arrival.at)


def limited(arrivals: list[Arrival], rpm: int) -> list[Arrival]:
    """What is left of them where each tenant may ask so often in a minute and is refused otherwise."""
    asked: Counter[tuple[str, int]] = Counter()
    allowed = []
    for arrival in arrivals:
        minute = arrival.tenant, int(arrival.at // 60)
        asked[minute] += 1
        if asked[minute] <= rpm:
            allowed.append(arrival)
    return allowed


def run(
    arm: str, arrivals: list[Arrival], seconds: float, weights: Mapping[str, float] | None = None
) -> SimulatedCluster:
    """`arm` is FCFS, VTC, or VTC without lift for the test that must fail."""
    counters = Counters(weights=weights)

    def arrange() -> tuple[FCFSQueue | FairQueue, ReserveMax]:
        queue = FCFSQueue() if arm == "FCFS" else FairQueue(counters)
        return queue, ReserveMax(ContinuousBatching(2048), POOL)

    return one(arrange, arrivals, A10G, blocks=POOL // 16, until=seconds)


def service(cluster: SimulatedCluster, until: float) -> dict[str, float]:
    """What each tenant had by then: prompt tokens at the first token, answers spread evenly."""
    had: dict[str, float] = {}
    for record in cluster.records.records.values():
        if record.tokens and record.first <= until:
            part = 1.0
            if record.last > until:
                part = (until - record.first) / (record.last - record.first)
            tenant = record.arrival.tenant
            had[tenant] = had.get(tenant, 0.0) + record.arrival.prompt_tokens + 2 * record.tokens * part
    return had


def shares(cluster: SimulatedCluster, since: float, until: float) -> dict[str, float]:
    """Service between two moments, relative to the tenant that had least."""
    before, after = service(cluster, since), service(cluster, until)
    had = {tenant: after[tenant] - before.get(tenant, 0.0) for tenant in after}
    return {tenant: one / min(had.values()) for tenant, one in sorted(had.items())}


def throughput(cluster: SimulatedCluster, seconds: float) -> float:
    """Prompt and output tokens a second."""
    every = cluster.records.records.values()
    return sum(one.tokens + one.arrival.prompt_tokens * (one.tokens > 0) for one in every) / seconds


def gap(cluster: SimulatedCluster, seconds: float, since: float = 0.0) -> float:
    """The largest difference between two tenants' service since then, at any of many moments."""
    gaps = []
    start = service(cluster, since)
    for step in range(1, 21):
        had = service(cluster, since + (seconds - since) * step / 20)
        grown = [had[tenant] - start.get(tenant, 0.0) for tenant in had]
        gaps.append(max(grown, default=0.0) - min(grown, default=0.0))
    return max(gaps)


def rows(*, quick: bool) -> list[Row]:
    return [*_overload_rows(quick=quick), *_chat_rows(quick=quick)]


def _chat_rows(*, quick: bool) -> list[Row]:
    """What it costs to be fair by refusing: the published 779 over 340 tokens/s."""
    seconds = 200.0 if quick else 600.0
    arrivals = chat(seconds)
    limit, vtc = run("FCFS", limited(arrivals, RPM), seconds), run("VTC", arrivals, seconds)
    return [
        Row("13", "VTC", f"{len(CHAT)} tenants, Llama-2-7B, A10G", "a little more than it can serve",
            f"throughput, over {RPM} requests a minute and tenant", "tokens/s",
            throughput(limit, seconds), throughput(vtc, seconds), 779 / 340, better="more",
            note="arrivals made to the trace's counts, less bursty"),
    ]  # fmt: skip


def _overload_rows(*, quick: bool) -> list[Row]:
    seconds = 200.0 if quick else 600.0
    arrivals = overload(seconds)
    fcfs, vtc = (run(arm, arrivals, seconds) for arm in ("FCFS", "VTC"))
    work, load = "two tenants, rates 1 : 2, Llama-2-7B, A10G", "twice what it can serve"
    return [
        Row("13", "VTC", work, load, "largest gap in service", "tokens",
            gap(fcfs, seconds, 60), gap(vtc, seconds, 60), 760 / 368),
        Row("13", "VTC", work, load, "throughput", "tokens/s",
            throughput(fcfs, seconds), throughput(vtc, seconds), None, better="more"),
    ]  # fmt: skip
