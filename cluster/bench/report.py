"""What a benchmark of servers came to: every repetition, the spread of each figure, how servers compare."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from cluster.bench.machine import Machine
from cluster.bench.result import Result
from cluster.bench.statistics import Goodput, Spread, Value, goodput, ratios


class Server(Value):
    """One that was measured. `prompts`: tokens counted exactly, or words as the server counts them."""

    name: str
    url: str
    model: str
    prompts: str


class Figure(Value):
    """One figure of a test over its repetitions. Times in seconds, memory in bytes, rates a second."""

    server: str
    test: str
    figure: str
    spread: Spread


class Ratio(Value):
    """A figure of the first server over another's, repetition by repetition."""

    server: str
    against: str
    test: str
    figure: str
    spread: Spread


class ServedRate(Value):
    """The goodput of a server over the rates that were tried, medians of repetitions."""

    server: str
    goodput: Goodput


class ServeReport(Value):
    """The item of `tandem bench serve -o json` and of `tandem bench replay -o json`."""

    command: str
    machine: Machine
    settings: dict[str, str]
    servers: tuple[Server, ...]
    results: tuple[Result, ...]
    figures: tuple[Figure, ...]
    ratios: tuple[Ratio, ...]
    goodput: tuple[ServedRate, ...]


HEADLINES = {
    "single": "decode_rate",
    "prefill": "prefill_rate",
    "batch": "output_rate",
    "rate": "share",
    "trace": "share",
}
"""The one figure of each kind of test that tells most."""


def figures_of(result: Result) -> dict[str, float]:
    """The figures of one repetition by name, without those that it does not have."""
    found: dict[str, float | None] = {
        "ttft_p50": result.ttft.p50,
        "ttft_p99": result.ttft.p99,
        "tpot_p50": result.tpot.p50,
        "tpot_p99": result.tpot.p99,
        "itl_p50": result.itl.p50,
        "itl_p99": result.itl.p99,
        "latency_p50": result.latency.p50,
        "output_rate": result.output_rate,
        "request_rate": result.request_rate,
        "share": result.attainment.share,
        "good_rate": result.attainment.rate,
        "memory": result.memory,
    }
    if result.kind == "single" and result.tpot.p50:
        found["decode_rate"] = 1 / result.tpot.p50
    if result.kind == "prefill" and result.ttft.p50:
        found["prefill_rate"] = result.prompt_tokens / (result.requests - result.failed) / result.ttft.p50
    return {name: float(value) for name, value in found.items() if value is not None}


def summarise(
    results: Sequence[Result],
) -> tuple[tuple[Figure, ...], tuple[Ratio, ...], tuple[ServedRate, ...]]:
    """Figures, ratios and goodput of all repetitions; the first server is compared with each other."""
    servers = _unique(result.server for result in results)
    tests = _unique(result.test for result in results)
    figures: list[Figure] = []
    found: list[Ratio] = []
    for test in tests:
        by_server = {server: _columns(results, server, test) for server in servers}
        for server, columns in by_server.items():
            figures += [
                Figure(server=server, test=test, figure=name, spread=Spread.of(values))
                for name, values in columns.items()
            ]
        for other in servers[1:]:
            found += _compared(test, servers[0], other, by_server[servers[0]], by_server[other])
    return tuple(figures), tuple(found), tuple(_served(results, servers))


def _compared(
    test: str, server: str, other: str, ours: dict[str, list[float]], theirs: dict[str, list[float]]
) -> list[Ratio]:
    listed = []
    for name, values in ours.items():
        spread = ratios(values, theirs.get(name, []))
        if spread is not None:
            listed.append(Ratio(server=server, against=other, test=test, figure=name, spread=spread))
    return listed


def _columns(results: Iterable[Result], server: str, test: str) -> dict[str, list[float]]:
    columns: dict[str, list[float]] = {}
    for result in results:
        if (result.server, result.test) == (server, test):
            for name, value in figures_of(result).items():
                columns.setdefault(name, []).append(value)
    return columns


def _served(results: Sequence[Result], servers: Iterable[str]) -> list[ServedRate]:
    rates = []
    for server in servers:
        shares: dict[float, list[float]] = {}
        for result in results:
            if result.server == server and result.kind == "rate" and result.rate is not None:
                shares.setdefault(result.rate, []).append(result.attainment.share)
        if shares:
            points = [(rate, Spread.of(values).median) for rate, values in shares.items()]
            rates.append(ServedRate(server=server, goodput=goodput(points)))
    return rates


def _unique(names: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(names))


Find = Callable[[str, str, str], Spread | None]


def finder(report: ServeReport) -> Find:
    """A look-up of figures by server, test and name."""
    table = {(one.server, one.test, one.figure): one.spread for one in report.figures}
    return lambda server, test, figure: table.get((server, test, figure))
