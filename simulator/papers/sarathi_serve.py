"""Paper 10, Sarathi-Serve (OSDI'24): chunks within a budget from the objective, so that no decode stalls."""

from __future__ import annotations

from collections.abc import Callable
from random import Random
from typing import Any

from decode_pool.stall_free import StallFree
from engine.batch import BatchPolicy
from simulator.papers.arms import MISTRAL_7B, highest, one
from simulator.papers.baselines import ChunksAlone, PrefillFirst, WholePrompts
from simulator.papers.rows import Row
from simulator.report import summarise
from simulator.setup import fcfs
from simulator.workload.arrivals import Arrival
from simulator.workload.generators import lognormal, make, poisson

STRICT, RELAXED = 0.1, 0.5

ARMS: dict[str, Callable[[float], BatchPolicy]] = {
    "vLLM": lambda tbt: PrefillFirst(8192, 128),
    "Orca": lambda tbt: WholePrompts(8192),
    "chunks alone": lambda tbt: ChunksAlone(512),
    "stall-free": lambda tbt: StallFree(MISTRAL_7B, tbt, most=512 if tbt == STRICT else 2048),
}


def chat(rate: float, count: int, seed: int) -> list[Arrival]:
    """Prompts with a median of 1,730 tokens, answers of 415, Poisson."""
    rng = Random(seed)
    prompt = lognormal(1730, 5700, rng, high=8192)
    return make(poisson(rate, rng), prompt, lognormal(415, 834, rng, high=2048), count)


def measure(arm: str, rate: float, count: int, seed: int, tbt: float = STRICT) -> dict[str, Any]:
    """The report of one arm."""
    return summarise(
        one(fcfs(lambda: ARMS[arm](tbt)), chat(rate, count, seed), MISTRAL_7B, max_sequences=128)
    )


def capacity(arm: str, tbt: float, count: int, seed: int, steps: int) -> float:
    """The highest rate with a p99 of the time between tokens within the objective, and no growing queue."""

    def holds(rate: float) -> bool:
        report = measure(arm, rate, count, seed, tbt)
        return bool(report["tbt"]["p99"] <= tbt and report["ttft"]["p50"] <= 2.0)

    return highest(holds, 0.25, 6.0, steps)


def rows(*, quick: bool) -> list[Row]:
    count, steps = (250, 5) if quick else (600, 7)
    found = []
    stalls = {arm: measure(arm, 2.0, count, 1)["tbt"]["p99"] for arm in ("vLLM", "stall-free")}
    work = "chat, Mistral-7B, A100"
    found.append(
        Row("10", "Sarathi-Serve", work, "2 requests/s", "p99 time between tokens", "s",
            stalls["vLLM"], stalls["stall-free"], None)
    )  # fmt: skip
    for name, tbt, published in (("strict", STRICT, 3.5), ("relaxed", RELAXED, 1.65)):
        rates = {arm: capacity(arm, tbt, count, 1, steps) for arm in ("vLLM", "stall-free")}
        found.append(
            Row("10", "Sarathi-Serve", work, f"p99 TBT ≤ {tbt:g} s", f"capacity, {name}", "requests/s",
                rates["vLLM"], rates["stall-free"], published, better="more")
        )  # fmt: skip
    return found
