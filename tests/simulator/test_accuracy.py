"""The simulator against what was measured: a real engine on a GPU, and a published simulator."""

from __future__ import annotations

import statistics

import pytest

from decode_pool.continuous_batching import ContinuousBatching
from engine.cost_model import Batch
from prefill_pool.chunked_prefill import ChunkedPrefill
from simulator.cost_tables.load import load
from simulator.network import LinkSettings
from simulator.report import summarise
from simulator.setup import PoolSetup, Setup, fcfs
from simulator.simulate import simulate
from simulator.workload.arrivals import Arrival
from tests.simulator.shared import rows, shared

AICONFIGURATOR = "cost/aiconfigurator_iteration_ms.csv"
DISTSERVE = "cost/distserve_a100_coefficients.json"
AT_ONCE = LinkSettings(bandwidth=1e18, latency=0.0)


def test_a_real_run_of_vllm_on_one_gpu_is_predicted_within_ten_percent() -> None:
    """300 requests on an RTX 4090 with far too few KV blocks, so that preemption decides; nothing is fitted.

    One step is predicted from the measured operators alone.
    """
    cost = load(f"{shared('cost/llmservingsim_rtx4090_llama-3.1-8b_tp1')}:layers=32")
    measured = rows("anchors/vllm019_real_rtx4090_llama-3.1-8b.csv.gz")
    arrivals = [
        Arrival(float(row["queued_s"]), int(row["prompt_tokens"]), int(row["output_tokens"]))
        for row in measured
    ]
    pool = PoolSetup("decode", 1, cost, 2588, fcfs(lambda: ContinuousBatching(2048)), max_sequences=256)
    setup = Setup((pool,), links=AT_ONCE, beat=1.0)
    report = summarise(simulate(setup, sorted(arrivals, key=lambda arrival: arrival.at)))
    assert report["requests"] | {"arrived": 300} == {
        "arrived": 300, "finished": 300, "refused": 0, "lost": 0, "duplicated_tokens": 0,
    }  # fmt: skip
    assert report["ttft"]["mean"] == pytest.approx(65.457, rel=0.10)
    assert report["tpot"]["mean"] == pytest.approx(32.447e-3, rel=0.06)
    assert report["e2e"]["mean"] == pytest.approx(86.578, rel=0.08)
    assert report["preemptions"] > 50


def test_simdistserve_is_met_within_one_percent() -> None:
    """Whole prompts in batches, decodes without a budget that binds, and a transfer that costs nothing."""
    table = f"{shared(DISTSERVE)}:model=facebook/opt-13b,overhead=2,per_token=1e-4"
    measured = rows("anchors/simdistserve_opt13b_distserve_600req.csv.gz")
    arrivals = [
        Arrival(float(row["arrival_s"]), int(row["prompt_tokens"]), int(row["output_tokens"]))
        for row in measured
    ]
    two, one = load(f"{table},tensor=2"), load(f"{table},tensor=1")
    many = 10_000
    prefill = PoolSetup(
        "prefill", 1, two, 100_000, fcfs(lambda: ChunkedPrefill(163_008, 16)), max_sequences=many
    )
    decode = PoolSetup(
        "decode", 1, one, 100_000, fcfs(lambda: ContinuousBatching(50_000)), max_sequences=many
    )
    setup = Setup((prefill, decode), links=AT_ONCE, kv_bytes=1)
    report = summarise(simulate(setup, arrivals), ttft=0.25, tpot=0.1)
    want = [float(row["ttft_ms"]) for row in measured]
    assert statistics.fmean(want) == pytest.approx(84.560, rel=1e-4), "the reference as its notes give it"
    assert report["ttft"]["mean"] == pytest.approx(84.560e-3, rel=0.01)
    assert report["ttft"]["p99"] == pytest.approx(239.44e-3, rel=0.01)
    assert report["tpot"]["mean"] == pytest.approx(44.375e-3, rel=0.01)
    assert report["slo"]["attainment"] == pytest.approx(0.990, abs=0.002)


@pytest.mark.parametrize(
    ("table", "options", "batch", "ms"),
    [
        (AICONFIGURATOR, "system=h200_sxm,model=Llama-3.1-8B", Batch(((2048, 0),)), 43.402),
        (AICONFIGURATOR, "system=h100_sxm,model=Llama-3.1-8B", Batch((), 64, 65536), 10.345),
        (AICONFIGURATOR, "system=a100_sxm,model=70B,tensor=4", Batch(((512, 0),)), 102.473),
        (DISTSERVE, "model=facebook/opt-13b", Batch(((512, 0),)), 73.149),
        (DISTSERVE, "model=facebook/opt-13b", Batch((), 32, 32768), 41.710),
    ],
)
def test_published_points_of_a_table_are_met(table: str, options: str, batch: Batch, ms: float) -> None:
    assert load(f"{shared(table)}:{options}").seconds(batch) * 1e3 == pytest.approx(ms, rel=1e-4)
