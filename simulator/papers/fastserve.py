"""Paper 08, FastServe: short jobs are not kept waiting by long ones, without knowing which are which."""

from __future__ import annotations

from random import Random
from typing import Any

from decode_pool.continuous_batching import ContinuousBatching
from engine.batch import BatchPolicy, WaitingQueue
from engine.queues.fcfs import FCFSQueue
from engine.queues.mlfq import Levels, MultiLevelQueue
from simulator.papers.arms import OPT_13B, highest, one
from simulator.papers.rows import Row
from simulator.report import summarise
from simulator.workload.arrivals import Arrival
from simulator.workload.generators import lognormal, make, poisson

BATCH, PROMPT_TOKENS = 16, 2048


def bimodal(rate: float, count: int, seed: int) -> list[Arrival]:
    """Nine answers of ten have 8 to 40 tokens, the tenth 600 to 1,000."""
    rng = Random(seed)

    def output() -> int:
        return rng.randint(8, 40) if rng.random() < 0.9 else rng.randint(600, 1000)

    return make(poisson(rate, rng), lognormal(160, 500, rng, high=1024), output, count)


def sharegpt(rate: float, count: int, seed: int) -> list[Arrival]:
    """Long-tailed lengths as in ShareGPT: answers with a median of 120 tokens."""
    rng = Random(seed)
    return make(
        poisson(rate, rng), lognormal(100, 700, rng, high=1024), lognormal(120, 620, rng, high=1500), count
    )


def arrange(arm: str, levels: Levels | None = None) -> tuple[WaitingQueue, BatchPolicy]:
    inner = ContinuousBatching(PROMPT_TOKENS)
    if arm == "FCFS":
        return FCFSQueue(), inner
    both = MultiLevelQueue(levels or Levels(batch=BATCH, starvation=60.0), inner, OPT_13B)
    return both, both


def measure(arm: str, arrivals: list[Arrival], levels: Levels | None = None) -> dict[str, Any]:
    """The report of one arm. FCFS runs what fits the batch; MLFQ keeps more resident and runs as many."""
    most = BATCH if arm == "FCFS" else 4096
    return summarise(one(lambda: arrange(arm, levels), arrivals, OPT_13B, max_sequences=most))


def capacity(arm: str, objective: float, count: int, steps: int) -> float:
    """The highest rate with a mean latency per token within the objective."""
    return highest(
        lambda rate: measure(arm, sharegpt(rate, count, 1))["per_token"]["mean"] <= objective,
        0.5,
        12.0,
        steps,
    )


def rows(*, quick: bool) -> list[Row]:
    count = 400 if quick else 800
    fcfs, mlfq = (measure(arm, bimodal(5.6, count, 1)) for arm in ("FCFS", "MLFQ"))
    work = "90 % short answers, OPT-13B, A100, ample KV"
    found = [
        Row("08", "FastServe", work, "5.6 requests/s", metric, "s", fcfs[key][at], mlfq[key][at], published)
        for metric, key, at, published in (
            ("mean latency per token", "per_token", "mean", None),
            ("p90 latency per token", "per_token", "p90", None),
            ("mean completion time", "e2e", "mean", None),
            ("p99 completion time", "e2e", "p99", None),
        )
    ]
    rates = [capacity(arm, 0.3, count, 5 if quick else 7) for arm in ("FCFS", "MLFQ")]
    found.append(
        Row("08", "FastServe", "ShareGPT-like, OPT-13B, ample KV", "≤ 0.3 s a token", "capacity",
            "requests/s", rates[0], rates[1], 2.0, better="more", note="published 2–4 on the same engine")
    )  # fmt: skip
    return found
