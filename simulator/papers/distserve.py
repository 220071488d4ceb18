"""Paper 11, DistServe (OSDI'24): goodput of prefill and decode apart, and where together is better."""

from __future__ import annotations

from dataclasses import dataclass, replace
from random import Random
from typing import Any

from decode_pool.continuous_batching import ContinuousBatching
from engine.batch import BatchPolicy
from engine.cost_model import Batch, CostModel
from global_scheduler.goodput import Arm, Parallel
from global_scheduler.placement import PlacementSettings
from global_scheduler.scheduler import SchedulerSettings
from prefill_pool.chunked_prefill import ChunkedPrefill
from simulator.network import LinkSettings
from simulator.papers.arms import OPT_13B_A100, QUICK, highest
from simulator.papers.baselines import PrefillFirst
from simulator.papers.rows import Row
from simulator.report import summarise
from simulator.setup import PoolSetup, Setup, fcfs
from simulator.simulate import simulate
from simulator.workload.arrivals import Arrival
from simulator.workload.generators import fixed, make, poisson

KV_BYTES, BLOCKS = 820_000, 66_144 // 16
SLOW = LinkSettings(bandwidth=25e9 / 8, latency=1e-3, shared=True)
"""One link of 25 Gb/s for all: seven prompts of 512 tokens a second and no more."""

SPREAD = SchedulerSettings(PlacementSettings(local_prefill_tokens=0), queue_limit=1_000_000)


def traffic(rate: float, count: int, seed: int) -> list[Arrival]:
    """512 tokens in, 64 out, Poisson: the paper's motivating case."""
    return make(poisson(rate, Random(seed)), fixed(512), fixed(64), count)


def setup(arm: str, links: LinkSettings = QUICK) -> Setup:
    """`arm` is `together`, `chunked` (together, with chunks) or `2P1D` and the like."""
    if arm in ("together", "chunked"):
        policy = (lambda: PrefillFirst(2048)) if arm == "together" else (lambda: ContinuousBatching(512))
        pools: tuple[PoolSetup, ...] = (PoolSetup("decode", 1, OPT_13B_A100, BLOCKS, fcfs(policy)),)
    else:
        prefills, decodes = int(arm[0]), int(arm[2])
        pools = (
            PoolSetup("prefill", prefills, OPT_13B_A100, BLOCKS, fcfs(lambda: ChunkedPrefill(512, 16))),
            PoolSetup("decode", decodes, OPT_13B_A100, BLOCKS, fcfs(lambda: ContinuousBatching(512))),
        )
    return Setup(pools, links=links, kv_bytes=KV_BYTES, scheduler=SPREAD)


def measure(
    arm: str, per_gpu: float, count: int, seed: int, *, ttft: float, tpot: float, links: LinkSettings = QUICK
) -> dict[str, Any]:
    """The report at so many requests a second for each GPU."""
    cluster_setup = setup(arm, links)
    gpus = sum(pool.replicas for pool in cluster_setup.pools)
    return summarise(
        simulate(cluster_setup, traffic(per_gpu * gpus, count * gpus, seed)), ttft=ttft, tpot=tpot
    )


def goodput(
    arm: str,
    count: int,
    steps: int,
    *,
    ttft: float = 0.4,
    tpot: float = 0.04,
    links: LinkSettings = QUICK,
    seed: int = 1,
) -> float:
    """Requests a second and GPU of which nine of ten meet both objectives."""

    def holds(rate: float) -> bool:
        report = measure(arm, rate, count, seed, ttft=ttft, tpot=tpot, links=links)
        return bool(report["slo"]["attainment"] >= 0.9)

    return highest(holds, 0.25, 12.0, steps)


SHAPES: dict[Parallel, CostModel] = {
    Parallel(): OPT_13B_A100,
    Parallel(pipeline=2): replace(OPT_13B_A100, pipeline=2),
}
"""Instances of one GPU and of two."""


@dataclass(frozen=True, slots=True)
class Free:
    """The cost of a phase that is not looked at: next to nothing, but time goes on."""

    def seconds(self, batch: Batch) -> float:
        return 1e-6


@dataclass(frozen=True, slots=True)
class Pools:
    """A global_scheduler.goodput.Measure of the motivating case: `count` requests for each GPU."""

    count: int
    ttft: float = 0.4
    tpot: float = 0.04
    links: LinkSettings = QUICK
    seed: int = 1

    def __call__(self, arm: Arm, rate: float) -> float:
        pools = [_pool("decode", arm.decodes, SHAPES[arm.decode], arm.decode.gpus)]
        if arm.prefills:
            pools.append(_pool("prefill", arm.prefills, SHAPES[arm.prefill], arm.prefill.gpus))
        return self._attained(pools, rate, arm.gpus, self.ttft, self.tpot, self.links)

    def alone(self, role: str, parallel: Parallel, rate: float) -> float:
        pools = [
            _pool(one, 1, SHAPES[parallel] if one == role else Free(), parallel.gpus if one == role else 64)
            for one in ("prefill", "decode")
        ]
        ttft, tpot = (self.ttft, None) if role == "prefill" else (None, self.tpot)
        at_once = LinkSettings(bandwidth=1e15, latency=0.0)
        return self._attained(pools, rate, parallel.gpus, ttft, tpot, at_once)

    def _attained(
        self,
        pools: list[PoolSetup],
        rate: float,
        gpus: int,
        ttft: float | None,
        tpot: float | None,
        links: LinkSettings,
    ) -> float:
        setup = Setup(tuple(pools), links=links, kv_bytes=KV_BYTES, scheduler=SPREAD)
        cluster = simulate(setup, traffic(rate, self.count * gpus, self.seed))
        return float(summarise(cluster, ttft=ttft, tpot=tpot)["slo"]["attainment"])


def _pool(role: str, replicas: int, cost: CostModel, gpus: int) -> PoolSetup:
    """Where nobody prefills for it, a decode instance does both in chunks."""

    def policy() -> BatchPolicy:
        return ChunkedPrefill(512, 16) if role == "prefill" else ContinuousBatching(512)

    return PoolSetup(role, replicas, cost, BLOCKS * gpus, fcfs(policy))


def rows(*, quick: bool) -> list[Row]:
    count, steps = (200, 6) if quick else (600, 8)
    work, load = "512 in, 64 out, OPT-13B, A100", "TTFT ≤ {:g} ms, TPOT ≤ {:g} ms, 90 % of requests"
    found = []
    cases = (
        ("2P1D over prefill first", "together", 0.4, 0.04, QUICK, 2.1, "NVLink-like links"),
        ("2P1D over chunked prefill", "chunked", 0.4, 0.04, QUICK, None, "NVLink-like links"),
        ("2P1D over prefill first", "together", 0.4, 0.1, QUICK, None, "loose TPOT: little to gain"),
        ("2P1D over prefill first", "together", 0.4, 0.04, SLOW, None, "one link of 25 Gb/s: a loss"),
    )
    for metric, base, ttft, tpot, links, published, note in cases:
        both = [goodput(arm, count, steps, ttft=ttft, tpot=tpot, links=links) for arm in (base, "2P1D")]
        found.append(
            Row("11", "DistServe", work, load.format(ttft * 1e3, tpot * 1e3), f"goodput, {metric}",
                "requests/s/GPU", both[0], both[1], published, better="more", note=note)
        )  # fmt: skip
    return found
