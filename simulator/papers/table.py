"""All papers' claims side by side: what was measured here and what was published."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

from simulator.papers import distserve, fastserve, llumnix, orca, paged, sarathi, sarathi_serve, slices, vtc
from simulator.papers.rows import Row

EXPERIMENTS: dict[str, Callable[[bool], list[Row]]] = {
    "07": lambda quick: paged.rows(quick=quick),
    "08": lambda quick: fastserve.rows(quick=quick),
    "09": lambda quick: sarathi.rows(quick=quick),
    "10": lambda quick: sarathi_serve.rows(quick=quick),
    "11": lambda quick: distserve.rows(quick=quick),
    "12": lambda quick: orca.rows(quick=quick),
    "13": lambda quick: vtc.rows(quick=quick),
    "18": lambda quick: llumnix.rows(quick=quick),
    "20": lambda quick: slices.rows(quick=quick),
}

HEADER = (
    "paper",
    "system",
    "workload",
    "load",
    "metric",
    "baseline",
    "ours",
    "ratio",
    "published",
    "verdict",
)


def measure(papers: Iterable[str], *, quick: bool) -> Iterator[Row]:
    """The rows of the papers asked for, one experiment after the other."""
    for paper in papers:
        yield from EXPERIMENTS[paper](quick)


def cells(row: Row) -> tuple[str, ...]:
    """A row as text, in the order of HEADER."""
    unit = f" {row.unit}" if row.unit else ""
    verdict = f"{row.verdict} ({row.note})" if row.note else row.verdict
    return (
        row.paper,
        row.system,
        row.workload,
        row.load,
        row.metric,
        f"{row.baseline:.4g}{unit}",
        f"{row.ours:.4g}{unit}",
        f"{row.ratio:.2f}",
        "" if row.published is None else f"{row.published:.2f}",
        verdict,
    )


def markdown(rows: Iterable[Row], command: str) -> str:
    """The page docs/papers.md."""
    lines = [
        "# The papers' claims, measured",
        "",
        f"Made by `{command}`. Both systems of a row run in the simulator with the same engine",
        "core, workload, seed and cost of steps, and differ in the one policy. A ratio above 1 says that",
        "tandem's is better. *Reproduced* means the sign of the published ratio and half of its logarithm.",
        "Steps cost what the papers or their artifacts publish, so absolute figures are of those cards.",
        "",
        "| " + " | ".join(HEADER) + " |",
        "|" + "---|" * len(HEADER),
    ]
    lines += ["| " + " | ".join(cells(row)) + " |" for row in rows]
    return "\n".join(lines) + "\n"
