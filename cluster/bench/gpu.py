"""Reports on a GPU: kernels beside what it can move and what torch reaches, and whole steps of a model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from importlib.metadata import PackageNotFoundError, version

from cluster.bench.machine import Machine
from cluster.bench.page import Section
from cluster.bench.statistics import Spread, Value
from model import gpu_bench

BATCHES = (1, 16, 64, 128)
CONTEXT = 1024
PROMPT = 2048

PREDICTED = {
    ("decode", 1, 1024): 4.861e-3,
    ("decode", 16, 1024): 5.778e-3,
    ("decode", 64, 1024): 7.569e-3,
    ("decode", 128, 1024): 9.936e-3,
    ("prefill", 1, 2048): 43.402e-3,
}
"""Seconds of a step of Llama-3.1-8B in bfloat16 on one H200 SXM, without the engine's own time: composed from
measured operators of vLLM 0.24.0 by PyPI's aiconfigurator 0.12.0 (ai-dynamo/aiconfigurator, Apache-2.0)."""


class KernelFigure(Value):
    """One kernel: seconds, bytes and operations that it must do at least, torch's median where it has one."""

    name: str
    case: str
    seconds: Spread
    moved: int
    operations: int
    rival: float | None


class StepFigure(Value):
    """A step of `tokens` positions (decode: of context): as it is served, and as one CUDA graph."""

    phase: str
    batch: int
    tokens: int
    served: Spread
    graph: Spread | None
    predicted: float | None


class Goal(Value):
    """A ratio that is to be reached: at least `wanted`, or at most where `upper`."""

    what: str
    reached: float
    wanted: float
    upper: bool

    @property
    def met(self) -> bool:
        return self.reached <= self.wanted if self.upper else self.reached >= self.wanted


class GpuReport(Value):
    """The item of `tandem bench kernels -o json` and of `tandem bench gpu -o json`."""

    command: str
    machine: Machine
    device: str
    versions: dict[str, str]
    kernels: tuple[KernelFigure, ...] = ()
    steps: tuple[StepFigure, ...] = ()
    goals: tuple[Goal, ...] = ()


def kernel_goals(kernels: Sequence[KernelFigure]) -> tuple[Goal, ...]:
    """Decode attention of 64 × 4,096 beside a plain copy, prefill attention beside torch's fastest."""
    copied = kernels[0].moved / kernels[0].seconds.median
    found = []
    for one in kernels:
        if (one.name, one.case) == ("decode attention", "64 × 4096"):
            share = one.moved / one.seconds.median / copied
            found.append(Goal(what="decode attention, 64 × 4096: share of the bandwidth of a copy",
                              reached=share, wanted=0.85, upper=False))  # fmt: skip
        if one.name == "prefill attention" and one.rival is not None:
            found.append(Goal(what=f"prefill attention, {one.case}: speed beside torch's best",
                              reached=one.rival / one.seconds.median, wanted=0.8, upper=False))  # fmt: skip
    return tuple(found)


def step_goals(steps: Sequence[StepFigure]) -> tuple[Goal, ...]:
    """Steps as they are served beside what is predicted of an H200."""
    return tuple(
        Goal(what=f"{one.phase}, batch {one.batch}: time beside the prediction",
             reached=one.served.median / one.predicted, wanted=1.15, upper=True)
        for one in steps
        if one.predicted is not None
    )  # fmt: skip


def measure_kernels(say: Callable[[str], None]) -> GpuReport:
    """Raises SetupError without a GPU."""
    machine, device = Machine.here(), gpu_bench.device_name()
    found = []
    for one in gpu_bench.kernels():
        seconds = Spread(median=one.median, low=one.low, high=one.high, values=(one.median,))
        found.append(
            KernelFigure(
                name=one.name,
                case=one.case,
                seconds=seconds,
                moved=one.moved,
                operations=one.operations,
                rival=one.rival,
            )
        )
        say(f"{one.name} · {one.case} · {one.median * 1e6:,.1f} µs")
    return GpuReport(
        command="kernels",
        machine=machine,
        device=device,
        versions=_versions(),
        kernels=tuple(found),
        goals=kernel_goals(found),
    )


def measure_steps(say: Callable[[str], None]) -> GpuReport:
    """Raises SetupError without a GPU, or with one that is too small."""
    machine, device = Machine.here(), gpu_bench.device_name()
    found = []
    for one in gpu_bench.steps(BATCHES, CONTEXT, PROMPT, say):
        found.append(
            StepFigure(
                phase=one.phase,
                batch=one.batch,
                tokens=one.tokens,
                served=Spread.of(one.served),
                graph=Spread.of(one.graph) if one.graph else None,
                predicted=PREDICTED.get((one.phase, one.batch, one.tokens)) if "H200" in device else None,
            )
        )
        say(f"{one.phase} · batch {one.batch} · {found[-1].served.median * 1e3:.2f} ms")
    return GpuReport(
        command="gpu",
        machine=machine,
        device=device,
        versions=_versions(),
        steps=tuple(found),
        goals=step_goals(found),
    )


def sections(report: GpuReport) -> list[Section]:
    versions = ", ".join(f"{name} {number}" for name, number in report.versions.items())
    found = [Section("GPU", note=f"{report.device} · {versions}")]
    if report.kernels:
        found.append(_kernel_section(report))
    if report.steps:
        found.append(_step_section(report))
    if report.goals:
        found.append(_goal_section(report))
    return found


def _kernel_section(report: GpuReport) -> Section:
    copy = report.kernels[0]
    bandwidth = copy.moved / copy.seconds.median
    rows = []
    for one in report.kernels:
        median = one.seconds.median
        rows.append(
            [
                one.name,
                one.case,
                f"{median * 1e6:,.1f}",
                f"{one.moved / median / 1e9:,.0f}",
                f"{100 * one.moved / median / bandwidth:.0f}",
                f"{one.operations / median / 1e12:,.1f}" if one.operations else "-",
                f"{one.rival / median:.2f}" if one.rival else "-",
            ]
        )
    columns = ["kernel", "size", "µs", "GB/s", "% of copy", "TFLOP/s", "× torch"]
    note = "Medians. `× torch` above 1: faster than the best of torch's attentions."
    return Section("Kernels", columns, rows, note)


def _step_section(report: GpuReport) -> Section:
    rows = []
    for one in report.steps:
        graph = one.graph.median if one.graph else None
        rows.append(
            [
                one.phase,
                str(one.batch),
                str(one.tokens),
                f"{one.served.median * 1e3:.2f}",
                f"{graph * 1e3:.2f}" if graph else "-",
                f"{one.predicted * 1e3:.2f}" if one.predicted else "-",
                f"{one.served.median / one.predicted:.2f}" if one.predicted else "-",
                f"{graph / one.predicted:.2f}" if graph and one.predicted else "-",
            ]
        )
    columns = [
        "phase", "batch", "tokens", "served ms", "one graph ms", "predicted ms", "served / predicted",
        "graph / predicted",
    ]  # fmt: skip
    note = (
        "Llama-3.1-8B's shape, random bfloat16 weights. The prediction is for an H200, engine time left out."
    )
    return Section("Whole steps", columns, rows, note)


def _goal_section(report: GpuReport) -> Section:
    rows = [
        [
            one.what,
            f"{one.reached:.2f}",
            f"{'≤' if one.upper else '≥'} {one.wanted:.2f}",
            "yes" if one.met else "no",
        ]
        for one in report.goals
    ]
    return Section("Goals", ["what", "reached", "wanted", "met"], rows)


def _versions() -> dict[str, str]:
    found = {}
    for name in ("torch", "triton"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "unknown"
    return found
