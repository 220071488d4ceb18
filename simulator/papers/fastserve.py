"""Paper 08, FastServe: short jobs are not kept waiting by long ones, without knowing which are which."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from random import Random

from decode_pool.continuous_batching import ContinuousBatching
from engine.batch import BatchPolicy, WaitingQueue
from engine.queues.fcfs import FCFSQueue
from engine.queues.mlfq import Levels, MultiLevelQueue
from engine.tiers import TierSettings
from simulator.cluster import SimulatedCluster
from simulator.papers.arms import OPT_13B, QUICK, highest
from simulator.papers.rows import Row
from simulator.report import distribution
from simulator.setup import PoolSetup, Setup
from simulator.simulate import simulate
from simulator.workload.arrivals import Arrival
from simulator.workload.generators import lognormal, make, poisson

BATCH, PROMPT_TOKENS, BLOCK = 16, 2048, 16


def bimodal(rate: float, count: int, seed: int) -> list[Arrival]:
    """Nine answers of ten have 8 to 40 tokens, the tenth 600 to 1,000."""
    rng = Random(seed)

    def output() -> int:
        return rng.randint(8, 40) if rng.random() < 0.9 else rng.randint(600, 1000)

    return make(poisson(rate, rng), lognormal(64, 200, rng, high=1024), output, count)


def sharegpt(rate: float, count: int, seed: int) -> list[Arrival]:
    """Long-tailed lengths as in ShareGPT: answers with a median of 120 tokens."""
    rng = Random(seed)
    return make(
        poisson(rate, rng), lognormal(100, 700, rng, high=1024), lognormal(120, 620, rng, high=1500), count
    )


LEVELS = Levels(batch=BATCH, starvation=10.0)
"""Promotion after 10 s: long jobs pay less, and the few that are promoted still don't take turns."""

PATIENT = Levels(batch=BATCH, starvation=60.0)
"""At the edge of what can be served, promotion after 10 s lets long jobs take turns with short ones, which
costs a tenth of the rate."""

PCIE = 0.033e-3 * BLOCK
"""Seconds for a block of 0.8 MB a token between device and host."""

TIGHT, HOST = 6_000 // BLOCK, 4_000
"""Blocks on the device in the ablation of swapping, and in host memory."""

SWAPPING = {
    "ahead": TierSettings(HOST, PCIE),
    "on demand": TierSettings(HOST, PCIE, proactive=False),
    "unguarded": TierSettings(HOST, PCIE, share=0.0),
    "recompute": TierSettings(1, PCIE, proactive=False, share=0.0),
    "free": TierSettings(HOST, 1e-9),
}
"""How room is made for who comes first: the arms differ in nothing else. "free" swaps take no time; it is
no bound, since who is swapped when changes with it."""

SMALL = 12_000 // BLOCK
"""Blocks on the device where a queue that preempts has to swap, and one that doesn't does not."""


def arrange(arm: str, levels: Levels | None = None) -> tuple[WaitingQueue, BatchPolicy]:
    inner = ContinuousBatching(PROMPT_TOKENS)
    if arm == "FCFS":
        return FCFSQueue(), inner
    both = MultiLevelQueue(levels or LEVELS, inner, OPT_13B)
    return both, both


def run(
    arm: str,
    arrivals: Sequence[Arrival],
    levels: Levels | None = None,
    *,
    blocks: int = 100_000,
    tiers: TierSettings | None = None,
) -> SimulatedCluster:
    """FCFS runs what fits the batch; MLFQ keeps more resident and runs as many."""
    most = BATCH if arm == "FCFS" else 4096
    pool = PoolSetup(
        "decode", 1, OPT_13B, blocks, lambda: arrange(arm, levels), max_sequences=most,
        tiers=tiers or TierSettings(),
    )  # fmt: skip
    return simulate(Setup((pool,), links=QUICK, beat=5.0), arrivals)


def seen(clusters: Iterable[SimulatedCluster]) -> dict[str, float]:
    """What the requests of several runs saw, together; long ones are those of 600 tokens and more."""
    records = [record for one in clusters for record in one.records.records.values()]
    per_token = distribution(record.e2e / record.tokens for record in records)
    return {
        "per token": per_token["mean"],
        "per token p95": per_token["p95"],
        "completion": distribution(record.e2e for record in records)["mean"],
        "long p99": distribution(r.e2e for r in records if r.tokens >= 600).get("p99", 0.0),
    }


def measure(arm: str, arrivals: Sequence[Arrival], levels: Levels | None = None) -> dict[str, float]:
    return seen([run(arm, arrivals, levels)])


def swap_share(cluster: SimulatedCluster) -> float:
    """The share of the time in which KV went to or from host memory."""
    tiers = [member.instance.core.tiers for member in cluster.members.values()]
    seconds = sum((one.swapped_out + one.swapped_in) * one.settings.seconds for one in tiers)
    return seconds / cluster.clock.now()


def capacity(
    arm: str,
    objective: float,
    count: int,
    steps: int,
    *,
    metric: str = "per token",
    blocks: int = 100_000,
    tiers: TierSettings | None = None,
) -> float:
    """The highest rate with a mean latency per token, or another `metric`, within the objective."""

    def holds(rate: float) -> bool:
        cluster = run(arm, sharegpt(rate, count, 1), PATIENT, blocks=blocks, tiers=tiers)
        return seen([cluster])[metric] <= objective

    return highest(holds, 0.5, 12.0, steps)


def rows(*, quick: bool) -> list[Row]:
    seeds = (1,) if quick else (1, 2, 3)
    arms = {arm: seen(run(arm, bimodal(5.6, 800, seed)) for seed in seeds) for arm in ("FCFS", "MLFQ")}
    work = "90 % short answers, OPT-13B, A100, ample KV"
    metrics = {
        "per token": "mean latency per token",
        "per token p95": "p95 latency per token",
        "completion": "mean completion time",
        "long p99": "p99 completion time of long answers",
    }
    found = [
        Row("08", "FastServe", work, f"5.6 requests/s, {len(seeds)} seeds", metric, "s",
            arms["FCFS"][key], arms["MLFQ"][key], None, note="long answers pay" if key == "long p99" else "")
        for key, metric in metrics.items()
    ]  # fmt: skip
    found += _capacity_rows(400 if quick else 800, 5 if quick else 7)
    return found + _swap_rows(200 if quick else 400, seeds)


def _capacity_rows(count: int, steps: int) -> list[Row]:
    swapping = SWAPPING["ahead"]
    cases: tuple[tuple[str, str, str, int, TierSettings | None, float | None, str], ...] = (
        ("ample KV", "≤ 0.3 s a token", "per token", 100_000, None, 2.0, "published 2–4 on the same engine"),
        ("ample KV", "p95 ≤ 0.3 s a token", "per token p95", 100_000, None, 1.5, "published 1.5–2.8"),
        (f"{SMALL * BLOCK:,} tokens of KV", "≤ 0.3 s a token", "per token", SMALL, swapping, None,
         "swapped over a bus that goes one way at a time"),
    )  # fmt: skip
    found = []
    for room, load, metric, blocks, tiers, published, note in cases:
        fcfs, mlfq = (
            capacity(arm, 0.3, count, steps, metric=metric, blocks=blocks, tiers=tiers)
            for arm in ("FCFS", "MLFQ")
        )
        found.append(
            Row("08", "FastServe", f"ShareGPT-like, OPT-13B, {room}", load, "capacity", "requests/s",
                fcfs, mlfq, published, better="more", note=note)
        )  # fmt: skip
    return found


def _swap_rows(count: int, seeds: Iterable[int]) -> list[Row]:
    arms = {
        arm: [run("MLFQ", sharegpt(3.2, count, seed), blocks=TIGHT, tiers=tiers) for seed in seeds]
        for arm, tiers in SWAPPING.items()
    }
    means = {arm: seen(clusters)["completion"] for arm, clusters in arms.items()}
    load = f"3.2 requests/s, {TIGHT * BLOCK} tokens of KV"
    return [
        Row("08", "FastServe", "ShareGPT-like, OPT-13B", load, f"mean completion time, over {name}", "s",
            means[arm], means["ahead"], published, note=note)
        for arm, name, published, note in (
            ("on demand", "swapping on demand", 1.7, "the baseline has the bound on swapping too"),
            ("recompute", "recomputing", 2.7, "few are preempted: swaps that cost nothing gain as little"),
            ("unguarded", "swapping without a bound", None, ""),
            ("free", "swapping that costs nothing", None, "swaps that take no time, not a bound"),
        )
    ]  # fmt: skip
