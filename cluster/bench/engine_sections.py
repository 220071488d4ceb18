"""The tables and plots of reports on the engine and on what serving adds to it."""

from __future__ import annotations

from collections.abc import Sequence

from cluster.bench.engine import EngineReport
from cluster.bench.overhead import OverheadReport
from cluster.bench.page import Section
from cluster.bench.plots import Axis, Series, line_chart
from cluster.bench.report import Figure
from cluster.bench.roofline import Roofs, Shape
from cluster.bench.serve_sections import UNITS, spread_text
from cluster.bench.statistics import Spread

WORKLOAD_FIGURES = ("decode_rate", "prefill_rate", "output_rate", "ttft_p50", "tpot_p50", "itl_p99")


def engine_sections(report: EngineReport) -> list[Section]:
    return [
        _roofs(report.roofs, report.shape, report.threads),
        _decode(report),
        _prefill(report),
        _workloads("The engine under load", report.figures),
    ]


def overhead_sections(report: OverheadReport) -> list[Section]:
    rows = [
        [
            cost.test,
            _range(cost.throughput, 100.0),
            _range(cost.ttft, 1e3),
            _range(cost.tpot, 1e3),
        ]
        for cost in report.costs
    ]
    columns = ["test", "throughput lost %", "TTFT added ms", "TPOT added ms"]
    note = "Served, compared with the bare engine in the same repetition; below zero the server was faster."
    return [Section("What serving costs", columns, rows, note), _workloads("Both", report.figures)]


def _roofs(roofs: Roofs, shape: Shape, threads: int) -> Section:
    rows = [
        ["memory bandwidth", f"{roofs.bandwidth / 1e9:.1f} GB/s"],
        ["bfloat16 products", f"{roofs.bfloat16 / 1e9:,.0f} GFLOP/s"],
        ["float32 products", f"{roofs.float32 / 1e9:,.0f} GFLOP/s"],
        ["int8 products", f"{roofs.int8 / 1e9:,.0f} GOP/s"],
    ]
    numbers = shape.dtype if shape.activations == "auto" else f"{shape.dtype} and {shape.activations}"
    note = (
        f"Measured in this run with {threads} thread{'s' * (threads > 1)}. The model computes in "
        f"{numbers} with {shape.weights} weights of {shape.weight_bytes / 2**20:,.0f} MiB."
    )
    return Section("What this processor reaches", ["limit", "reached"], rows, note)


def _decode(report: EngineReport) -> Section:
    rows = []
    for point in report.decode:
        best = point.seconds.low
        rows.append(
            [
                str(point.batch),
                str(point.context),
                spread_text(point.seconds, 1e3),
                f"{point.batch / point.seconds.median:,.1f}",
                f"{point.limit * 1e3:.2f}",
                f"{100 * point.limit / point.seconds.median:.0f}",
                f"{100 * point.limit / best:.0f}",
            ]
        )
    columns = ["batch", "context", "step ms", "tok/s", "limit ms", "% of limit", "best %"]
    note = "Medians over steps ± the farthest."
    return Section("Decode step", columns, rows, note, _decode_plots(report) if rows else [])


def _decode_plots(report: EngineReport) -> list[str]:
    """Step time against batch at the shortest contexts, and against context at some batches."""
    plots = []
    contexts = sorted({point.context for point in report.decode})[:3]
    by_batch = []
    for context in contexts:
        chosen = [point for point in report.decode if point.context == context]
        by_batch.append(_series(f"context {context}", [(p.batch, p.seconds) for p in chosen]))
        limits = [(float(p.batch), p.limit * 1e3) for p in chosen]
        by_batch.append(Series(f"limit {context}", limits, limit=True))
    log_batch, milliseconds = Axis("batch", log=True), Axis("step ms", log=True)
    plots.append(line_chart("Decode step against batch", log_batch, milliseconds, by_batch))
    by_context = []
    for batch in sorted({point.batch for point in report.decode} & {1, 8, 32}):
        chosen = [point for point in report.decode if point.batch == batch]
        by_context.append(_series(f"batch {batch}", [(p.context, p.seconds) for p in chosen]))
        limits = [(float(p.context), p.limit * 1e3) for p in chosen]
        by_context.append(Series(f"limit {batch}", limits, limit=True))
    log_context = Axis("context", log=True)
    plots.append(line_chart("Decode step against context", log_context, milliseconds, by_context))
    return plots


def _series(name: str, points: Sequence[tuple[int, Spread]]) -> Series:
    return Series(
        name,
        [(float(x), spread.median * 1e3) for x, spread in points],
        [(spread.low * 1e3, spread.high * 1e3) for _, spread in points],
    )


def _prefill(report: EngineReport) -> Section:
    rows = [
        [
            str(point.tokens),
            spread_text(point.seconds, 1e3),
            f"{point.tokens / point.seconds.median:,.0f}",
            f"{point.limit * 1e3:.2f}",
            f"{100 * point.limit / point.seconds.median:.0f}",
        ]
        for point in report.prefill
    ]
    rates = [(float(p.tokens), p.tokens / p.seconds.median) for p in report.prefill]
    limits = [(float(p.tokens), p.tokens / p.limit) for p in report.prefill]
    plot = line_chart(
        "Prefill against length",
        Axis("tokens", log=True),
        Axis("tok/s"),
        [Series("prefill", rates), Series("limit", limits, limit=True)],
    )
    columns = ["tokens", "step ms", "tok/s", "limit ms", "% of limit"]
    return Section("Prefill of one prompt in one step", columns, rows, "", [plot] if rows else [])


def _workloads(title: str, figures: Sequence[Figure]) -> Section:
    table = {(one.server, one.test, one.figure): one.spread for one in figures}
    tests = dict.fromkeys((one.test, one.server) for one in figures)
    rows = [
        [
            test,
            server,
            *(spread_text(table.get((server, test, name)), UNITS[name][1]) for name in WORKLOAD_FIGURES),
        ]
        for test, server in tests
    ]
    columns = ["test", "", *(UNITS[name][0] for name in WORKLOAD_FIGURES)]
    return Section(title, columns, rows)


def _range(spread: Spread | None, factor: float) -> str:
    """Median and ends: a difference may be about zero, where a share of it says nothing."""
    if spread is None:
        return "-"
    median, low, high = (value * factor for value in (spread.median, spread.low, spread.high))
    return f"{median:.2f} ({low:.2f} to {high:.2f})"
