"""What gateway, scheduler and Ray cost: a server beside the bare engine, same model, same machine, in turn.

The server should have one instance that does everything, with the bare engine's settings: then the
difference is the way of a request through HTTP, the scheduler, the actor and the stream of its tokens.
"""

from __future__ import annotations

from collections.abc import Sequence

from cluster.bench.machine import Machine
from cluster.bench.report import Figure, Server, figures_of, summarise
from cluster.bench.result import Result
from cluster.bench.statistics import Spread, Value


class Cost(Value):
    """What serving adds to one test, repetition by repetition.

    `throughput` is the share of the engine's output rate that is lost, the others are seconds added to
    the medians.
    """

    test: str
    throughput: Spread | None
    ttft: Spread | None
    tpot: Spread | None


class OverheadReport(Value):
    """The item of `tandem bench overhead -o json`. `results` and `figures` are as in a ServeReport."""

    command: str
    machine: Machine
    settings: dict[str, str]
    servers: tuple[Server, ...]
    results: tuple[Result, ...]
    figures: tuple[Figure, ...]
    costs: tuple[Cost, ...]


def report(
    machine: Machine,
    settings: dict[str, str],
    servers: Sequence[Server],
    results: Sequence[Result],
) -> OverheadReport:
    """Of `servers`, the first is the served one and the second the bare engine."""
    figures, _, _ = summarise(results)
    served, bare = (server.name for server in servers)
    tests = dict.fromkeys(result.test for result in results)
    return OverheadReport(
        command="overhead",
        machine=machine,
        settings=settings,
        servers=tuple(servers),
        results=tuple(results),
        figures=figures,
        costs=tuple(_cost(test, results, served, bare) for test in tests),
    )


def _cost(test: str, results: Sequence[Result], served: str, bare: str) -> Cost:
    pairs = [
        (figures_of(one), figures_of(other))
        for one in results
        for other in results
        if one.test == other.test == test
        and (one.server, other.server) == (served, bare)
        and one.repetition == other.repetition
    ]
    lost = [1 - one["output_rate"] / other["output_rate"] for one, other in pairs if other["output_rate"] > 0]
    return Cost(
        test=test,
        throughput=Spread.of(lost) if lost else None,
        ttft=_added(pairs, "ttft_p50"),
        tpot=_added(pairs, "tpot_p50"),
    )


def _added(pairs: Sequence[tuple[dict[str, float], dict[str, float]]], figure: str) -> Spread | None:
    found = [one[figure] - other[figure] for one, other in pairs if figure in one and figure in other]
    return Spread.of(found) if found else None
