"""Paper 09, SARATHI: decodes ride along with a chunk that fills the tiles of the matrix kernels."""

from __future__ import annotations

from dataclasses import dataclass
from random import Random
from statistics import median

from engine.batch import BatchPolicy
from engine.cost_model import Batch
from prefill_pool.decode_maximal import DecodeMaximal
from simulator.cluster import SimulatedCluster
from simulator.papers.arms import one
from simulator.papers.baselines import PrefillFirst, WholePrompts
from simulator.papers.pipeline import Pipeline, PipelineRun
from simulator.papers.rows import Row
from simulator.setup import fcfs
from simulator.workload.arrivals import Arrival

TILE, CHUNK, BATCH = 128, 256, 18
POINTS = {1: 55.0, 2: 69.8, 3: 92.33, 4: 122.0}
"""Tiles of 128 tokens to milliseconds: LLaMA-13B on an A6000, as the paper measured it."""


@dataclass(frozen=True, slots=True)
class TiledCost:
    """The paper's points; beyond the last, its pace goes on. A step without a prompt costs 50 ms at least."""

    def seconds(self, batch: Batch) -> float:
        tiles = -(-batch.tokens // TILE)
        dense = POINTS[tiles] if tiles in POINTS else POINTS[4] * tiles / 4
        if not batch.prefills:
            dense = 50.0
        read = batch.context + sum(before + new // 2 for new, before in batch.prefills)
        return (dense + 1.04e-3 * read) / 1000.0


def steady_mix(requests: int, length: int, ratio: float) -> list[Arrival]:
    """Prompt and answer together `length` tokens, at so many prompt tokens for each of the answer's."""
    output = round(length / (1 + ratio))
    return [Arrival(0.0, length - output, output)] * requests


def run(arm: str, arrivals: list[Arrival], chunk: int = CHUNK, batch: int = BATCH) -> SimulatedCluster:
    policies: dict[str, BatchPolicy] = {
        "separate": PrefillFirst(1, batch),
        "Orca": WholePrompts(1),
        "SARATHI": DecodeMaximal(chunk, TILE),
    }
    return one(fcfs(lambda: policies[arm]), arrivals, TiledCost(), max_sequences=batch)


def seconds(cluster: SimulatedCluster) -> float:
    return max(record.last for record in cluster.records.records.values())


def throughput(arm: str, arrivals: list[Arrival], chunk: int = CHUNK, batch: int = BATCH) -> float:
    """Tokens a second, prompts and answers, until the last answer ends."""
    tokens = sum(one.prompt_tokens + one.output_tokens for one in arrivals)
    return tokens / seconds(run(arm, arrivals, chunk, batch))


def zipf_mix(requests: int, rng: Random, theta: float = 0.4, ratio: float = 10.0) -> list[Arrival]:
    """Prompt and answer together 1,024 to 4,096 tokens, the shorter the likelier: P(rank) ~ rank^-theta."""
    lengths = range(1024, 4097)
    weights = [rank**-theta for rank in range(1, len(lengths) + 1)]
    drawn = rng.choices(lengths, weights, k=requests)
    return [steady_mix(1, length, ratio)[0] for length in drawn]


def piped(arm: str, arrivals: list[Arrival], stages: int, chunk: int = CHUNK, batch: int = 27) -> PipelineRun:
    """Through a pipeline of so many stages; the paper's 8 stages of GPT-3 hold micro-batches of 27."""

    def policy() -> BatchPolicy:
        return DecodeMaximal(chunk, TILE) if arm == "SARATHI" else WholePrompts(1)

    return Pipeline(stages, batch, policy, TiledCost()).run(arrivals)


def rows(*, quick: bool) -> list[Row]:
    requests = 150 if quick else 600
    found = []
    for length, batch, ratio, published in ((1024, 18, 14.0, 1.27), (3072, 6, 50.0, 1.23)):
        arrivals = steady_mix(requests, length, ratio)
        ours = throughput("SARATHI", arrivals, batch=batch)
        work = f"{length} tokens, P:D {ratio:g}, LLaMA-13B, A6000"
        for base, paper in (("separate", published), ("Orca", None)):
            found.append(
                Row("09", "SARATHI", work, f"batch {batch}", f"throughput over {base} batches", "tokens/s",
                    throughput(base, arrivals, batch=batch), ours, paper, better="more")
            )  # fmt: skip
    return found + _pipeline_rows(zipf_mix(600 if quick else 10_000, Random(9)))


def _pipeline_rows(arrivals: list[Arrival]) -> list[Row]:
    orca, ours = (piped(arm, arrivals, stages=8) for arm in ("Orca", "SARATHI"))
    work, load = "Zipf 0.4 over 1,024–4,096 tokens, P:D 10, 8 stages", f"{len(arrivals)} requests, batch 27"
    uneven, even = (median(one.bubbles.values()) for one in (orca, ours))
    return [
        Row("09", "SARATHI", work, load, "time to finish, over Orca batches", "s",
            orca.seconds, ours.seconds, 1.91, note="steps of LLaMA-13B on an A6000"),
        Row("09", "SARATHI", work, load, "median bubbles of a request, over Orca batches", "s",
            uneven, even, 6.29, note="passing on costs nothing, and no step is ever late"),
    ]  # fmt: skip
