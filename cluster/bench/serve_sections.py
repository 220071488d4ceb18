"""The tables and plots of a report on servers."""

from __future__ import annotations

from collections.abc import Sequence

from cluster.bench.page import Section
from cluster.bench.plots import Axis, Series, line_chart
from cluster.bench.report import HEADLINES, Ratio, ServeReport, figures_of, finder
from cluster.bench.result import Result
from cluster.bench.statistics import MEETING, Goodput, Spread

TITLES = {
    "single": "One stream",
    "prefill": "Prefill",
    "batch": "Many at once",
    "rate": "Arrivals at a rate",
    "trace": "Replayed trace",
}
UNITS = {
    "decode_rate": ("decode tok/s", 1.0),
    "prefill_rate": ("prefill tok/s", 1.0),
    "output_rate": ("output tok/s", 1.0),
    "request_rate": ("requests/s", 1.0),
    "good_rate": ("good requests/s", 1.0),
    "share": ("within SLO", 1.0),
    "ttft_p50": ("TTFT P50 ms", 1e3),
    "ttft_p99": ("TTFT P99 ms", 1e3),
    "tpot_p50": ("TPOT P50 ms", 1e3),
    "tpot_p99": ("TPOT P99 ms", 1e3),
    "itl_p50": ("ITL P50 ms", 1e3),
    "itl_p99": ("ITL P99 ms", 1e3),
    "latency_p50": ("latency P50 ms", 1e3),
    "memory": ("memory MiB", 2.0**-20),
}
"""How a figure is called and what it is multiplied with for people."""

COLUMNS = {
    "single": ("decode_rate", "tpot_p50", "itl_p99", "ttft_p50", "memory"),
    "prefill": ("prefill_rate", "ttft_p50", "memory"),
    "batch": ("output_rate", "ttft_p50", "tpot_p50", "tpot_p99", "itl_p99", "memory"),
    "rate": ("share", "good_rate", "ttft_p50", "ttft_p99", "tpot_p50", "tpot_p99", "itl_p99", "output_rate"),
    "trace": ("share", "good_rate", "ttft_p50", "ttft_p99", "tpot_p50", "tpot_p99", "itl_p99", "output_rate"),
}


def sections(report: ServeReport) -> list[Section]:
    """What was measured, kind by kind, then ratios, goodput and what to think of the measurement itself."""
    kinds = dict.fromkeys(result.kind for result in report.results)
    found = [_figures(report, kind) for kind in kinds]
    if report.ratios:
        found.append(_ratios(report))
    if report.goodput:
        found.append(_goodput(report))
    return [*found, _quality(report.results)]


def result_line(result: Result) -> str:
    """One repetition in one line."""
    figures = figures_of(result)
    shown = [
        f"{UNITS[name][0]} {_number(figures[name] * UNITS[name][1])}"
        for name in COLUMNS[result.kind][:3]
        if name in figures
    ]
    trouble = [f"{result.failed} of {result.requests} failed"] if result.failed else []
    return f"{result.server} · {result.test} · " + ", ".join([*shown, *trouble])


def spread_text(spread: Spread | None, factor: float = 1.0) -> str:
    """The median, and where values differ how far the farther end of them is from it."""
    if spread is None:
        return "-"
    text = _number(spread.median * factor)
    away = max(spread.high - spread.median, spread.median - spread.low)
    if not away or not spread.median:
        return text
    return f"{text} ±{100 * away / abs(spread.median):.0f}%"


def _number(value: float) -> str:
    if abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.1f}" if abs(value) >= 100 else f"{value:.2f}"


def _figures(report: ServeReport, kind: str) -> Section:
    find = finder(report)
    tests = dict.fromkeys(result.test for result in report.results if result.kind == kind)
    rows = []
    for test in tests:
        for server in report.servers:
            cells = [spread_text(find(server.name, test, name), UNITS[name][1]) for name in COLUMNS[kind]]
            rows.append([test, server.name, *cells])
    columns = ["test", "server", *(UNITS[name][0] for name in COLUMNS[kind])]
    plots = _rate_plots(report) if kind == "rate" and len(tests) > 1 else []
    return Section(TITLES[kind], columns, rows, _note(report, kind), plots)


def _note(report: ServeReport, kind: str) -> str:
    first = next(result for result in report.results if result.kind == kind)
    repetitions = 1 + max(result.repetition for result in report.results)
    text = f"{first.requests} requests a repetition, medians of {repetitions} ± the farthest"
    if kind in ("rate", "trace"):
        slo = first.attainment
        text += f"; SLO: TTFT ≤ {slo.ttft * 1e3:g} ms and TPOT ≤ {slo.tpot * 1e3:g} ms"
    return text


def _rate_plots(report: ServeReport) -> list[str]:
    find = finder(report)
    rates = sorted({(result.rate, result.test) for result in report.results if result.rate is not None})
    plots = []
    for figure in ("share", "ttft_p99", "tpot_p99", "itl_p99"):
        label, factor = UNITS[figure]
        series = []
        for server in report.servers:
            spreads = [(rate, find(server.name, test, figure)) for rate, test in rates]
            known = [(rate, spread) for rate, spread in spreads if spread is not None]
            points = [(rate, spread.median * factor) for rate, spread in known]
            ranges = [(spread.low * factor, spread.high * factor) for _, spread in known]
            series.append(Series(server.name, points, ranges))
        plots.append(line_chart(f"{label} against rate", Axis("requests a second"), Axis(label), series))
    return plots


def _ratios(report: ServeReport) -> Section:
    kinds = {result.test: result.kind for result in report.results}

    def wanted(one: Ratio) -> bool:
        return one.figure in COLUMNS[kinds[one.test]]

    rows = [
        [one.test, f"{one.server} / {one.against}", UNITS[one.figure][0], spread_text(one.spread)]
        for one in sorted(report.ratios, key=lambda one: one.figure != HEADLINES[kinds[one.test]])
        if wanted(one)
    ]
    return Section("Ratios", ["test", "servers", "figure", "ratio"], rows, "Repetition by repetition.")


def _goodput(report: ServeReport) -> Section:
    rows = [[one.server, goodput_text(one.goodput)] for one in report.goodput]
    note = f"The highest rate at which {MEETING:.0%} of the requests meet the SLO, between the rates tried."
    return Section("Goodput", ["server", "requests/s"], rows, note)


def goodput_text(found: Goodput) -> str:
    words = {"at": "", "at least": "≥ ", "below": "< "}
    return f"{words[found.bound]}{found.rate:.2f}"


def _quality(results: Sequence[Result]) -> Section:
    """Whether the figures can be believed: failures, short answers, what client and others took."""
    rows = []
    for server in dict.fromkeys(result.server for result in results):
        own = [result for result in results if result.server == server]
        others = [result.other_cores for result in own if result.other_cores is not None]
        rows.append(
            [
                server,
                str(sum(result.failed for result in own)),
                str(sum(result.cut for result in own)),
                f"{sum(r.output_tokens for r in own) / max(1, sum(r.events for r in own)):.2f}",
                f"{max(result.client.cores for result in own):.3f}",
                f"{max(result.client.late for result in own) * 1e3:.1f}",
                f"{max(others):.2f}" if others else "-",
            ]
        )
    columns = [
        "server", "failed", "cut short", "tokens/event", "client cores", "latest send ms", "other cores",
    ]  # fmt: skip
    errors = dict.fromkeys(f"{result.server}: {error}" for result in results for error in result.errors)
    return Section("The measurement itself", columns, rows, " · ".join(errors))
