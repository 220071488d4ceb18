"""Reports on a GPU say what was measured, and whether the goals are met."""

from __future__ import annotations

import pytest
import torch

from cluster.bench.gpu import (
    PREDICTED,
    GpuReport,
    KernelFigure,
    StepFigure,
    kernel_goals,
    measure_kernels,
    measure_steps,
    sections,
    step_goals,
)
from cluster.bench.machine import Machine
from cluster.bench.statistics import Spread
from engine.errors import SetupError


def kernel(name: str, case: str, seconds: float, moved: int, rival: float | None = None) -> KernelFigure:
    return KernelFigure(
        name=name, case=case, seconds=Spread.of([seconds]), moved=moved, operations=0, rival=rival
    )


COPY = kernel("copy", "2048 MiB", 1e-3, 4 * 10**9)


@pytest.mark.parametrize(("seconds", "met"), [(2e-3 / 0.86, True), (2e-3 / 0.84, False)])
def test_decode_attention_is_held_to_the_bandwidth_of_a_copy(seconds: float, met: bool) -> None:
    others = kernel("decode attention", "1 × 4096", 1.0, 1)
    goal, *rest = kernel_goals([COPY, others, kernel("decode attention", "64 × 4096", seconds, 8 * 10**9)])
    assert goal.met is met
    assert goal.reached == pytest.approx(2e-3 / seconds)
    assert not rest


@pytest.mark.parametrize(("seconds", "met"), [(1.2e-3, True), (1.3e-3, False)])
def test_prefill_attention_is_held_to_torchs(seconds: float, met: bool) -> None:
    without = kernel("prefill attention", "8192", 1e-3, 1)
    (goal,) = kernel_goals([COPY, without, kernel("prefill attention", "4096", seconds, 1, rival=1e-3)])
    assert goal.met is met


def step(seconds: float, predicted: float | None) -> StepFigure:
    return StepFigure(
        phase="decode", batch=64, tokens=1024, served=Spread.of([seconds]), graph=None, predicted=predicted
    )


def test_steps_are_held_to_the_prediction_where_there_is_one() -> None:
    predicted = PREDICTED["decode", 64, 1024]
    near, far = step_goals(
        [step(1.14 * predicted, predicted), step(1.16 * predicted, predicted), step(1, None)]
    )
    assert (near.met, far.met) == (True, False)


def test_a_report_shows_its_goals() -> None:
    found = step_goals([step(0.009, 0.007569)])
    report = GpuReport(
        command="gpu", machine=Machine.here(), device="NVIDIA H200", versions={},
        steps=(step(0.009, 0.007569),), goals=found,
    )  # fmt: skip
    rows = {section.title: section.rows for section in sections(report)}
    assert rows["Goals"] == [["decode, batch 64: time beside the prediction", "1.19", "≤ 1.15", "no"]]


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_nothing_is_measured_and_it_says_what_to_do() -> None:
    for measure in (measure_kernels, measure_steps):
        with pytest.raises(SetupError, match="NVIDIA GPU"):
            measure(print)
