"""Simulations as one self-contained page: what an operator looks at first, several runs side by side."""

from __future__ import annotations

import html
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from simulator.charts import COLOURS, Points, chart, gantt
from simulator.cluster import SimulatedCluster
from simulator.records import Record
from simulator.report import as_json

POINTS = 400
"""Of a curve: more cannot be told apart."""

STYLE = (
    "body{font:14px system-ui;max-width:820px;margin:2em auto;color:#111}"
    "pre{background:#f3f4f6;padding:1em;overflow:auto}svg{width:100%}td,th{text-align:left;padding:0 1em 0 0}"
)


@dataclass(frozen=True, slots=True)
class Run:
    """A simulation that is over, with its report."""

    name: str
    cluster: SimulatedCluster
    report: Mapping[str, Any]


LATENCIES: Mapping[str, Callable[[Record], float]] = {
    "time to first token (s)": lambda record: record.ttft,
    "time per output token (s)": lambda record: record.tpot,
    "end to end (s)": lambda record: record.e2e,
}

OVER_TIME = {"waiting requests": 1, "running requests": 2, "instances": 3}


def page(runs: Sequence[Run]) -> str:
    """HTML without anything to fetch: curves of all runs in each chart, then what belongs to one run."""
    title = " and ".join(run.name for run in runs)
    parts = [_cdf_chart(name, value, runs) for name, value in LATENCIES.items()]
    for name, index in OVER_TIME.items():
        series = {
            f"{_of(run, runs)}{role}": [(sample[0], float(sample[index])) for sample in samples]
            for run in runs
            for role, samples in run.cluster.samples.items()
        }
        parts.append(chart(f"{name} over time (s)", series, name))
    for run in runs:
        watched = run.cluster.watched
        if watched.spans is not None:
            parts.append(gantt(f"{_of(run, runs)}the first requests of {watched.name} (s)", watched.spans))
        parts.append(_services(_of(run, runs), run.report["tenants"]))
        parts.append(_events(_of(run, runs), run.report["scale_events"]))
    reports = "".join(
        f"<h2>Report{' of ' + html.escape(run.name) if len(runs) > 1 else ''}</h2>"
        f"<pre>{html.escape(as_json(run.report))}</pre>"
        for run in runs
    )
    return (
        f"<!doctype html><html lang=en><meta charset=utf-8><title>{html.escape(title)}</title>"
        f"<style>{STYLE}</style><h1>{html.escape(title)}</h1>{''.join(parts)}{reports}</html>"
    )


def _of(run: Run, runs: Sequence[Run]) -> str:
    """Says which run is meant where there are several."""
    return f"{run.name}: " if len(runs) > 1 else ""


def _cdf_chart(name: str, value: Callable[[Record], float], runs: Sequence[Run]) -> str:
    series = {}
    for run in runs:
        done = [record for record in run.cluster.records.records.values() if record.finished]
        series[run.name] = _cdf(sorted(map(value, done)))
    return chart(name, series, "share of requests")


def _cdf(ordered: Sequence[float]) -> Points:
    step = max(1, len(ordered) // POINTS)
    return [(ordered[i], (i + 1) / len(ordered)) for i in range(0, len(ordered), step)]


def _services(of: str, tenants: Mapping[str, Mapping[str, float]]) -> str:
    if len(tenants) < 2:
        return ""
    most = max(tenant["service"] for tenant in tenants.values()) or 1.0
    rows = "".join(
        f"<tr><td>{html.escape(name or '(none)')}<td>{tenant['requests']:.0f}"
        f'<td><svg style="width:300px" width="300" height="12"><rect height="12" fill="{COLOURS[0]}" '
        f'width="{300 * tenant["service"] / most:.0f}"/></svg> {tenant["service"]:,.0f}'
        for name, tenant in sorted(tenants.items(), key=lambda item: -item[1]["service"])
    )
    head = "<tr><th>tenant<th>requests<th>service"
    return f"<h2>{html.escape(of)}service of tenants</h2><table>{head}{rows}</table>"


def _events(of: str, events: Sequence[Mapping[str, Any]]) -> str:
    if not events:
        return ""
    rows = "".join(
        f"<tr><td>{event['at']:.0f} s<td>{html.escape(event['pool'])}<td>{event['target']}"
        f"<td>{html.escape(event['reason'])}"
        for event in events
    )
    return f"<h2>{html.escape(of)}pools that were resized</h2><table>{rows}</table>"
