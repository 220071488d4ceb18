"""A simulation as one self-contained page: what an operator looks at first, as plain SVG."""

from __future__ import annotations

import html
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from simulator.cluster import SimulatedCluster
from simulator.report import as_json

WIDTH, HEIGHT, LEFT, BOTTOM = 720, 220, 60, 30
COLOURS = ("#2563eb", "#d97706", "#059669", "#dc2626", "#7c3aed", "#0891b2", "#be185d", "#4d7c0f")
POINTS = 400
"""Of a curve: more cannot be told apart."""

Points = Sequence[tuple[float, float]]


def page(cluster: SimulatedCluster, report: Mapping[str, Any], *, title: str) -> str:
    """HTML without anything to fetch."""
    done = [record for record in cluster.records.records.values() if record.finished]
    latencies = {
        "time to first token (s)": _cdf(record.ttft for record in done),
        "end to end (s)": _cdf(record.e2e for record in done),
    }
    parts = [_chart(name, {name: points}, "share of requests") for name, points in latencies.items()]
    tpot = "time per output token (s)"
    parts.append(_chart(tpot, {tpot: _cdf(record.tpot for record in done)}, "share of requests"))
    for name, index in (("waiting", 1), ("running", 2), ("instances", 3)):
        series = {
            role: [(sample[0], float(sample[index])) for sample in samples]
            for role, samples in cluster.samples.items()
        }
        parts.append(_chart(f"{name} over time (s)", series, name))
    parts.append(_services(report["tenants"]))
    return (
        f"<!doctype html><html lang=en><meta charset=utf-8><title>{html.escape(title)}</title>"
        "<style>body{font:14px system-ui;max-width:760px;margin:2em auto;color:#111}"
        "pre{background:#f3f4f6;padding:1em;overflow:auto}svg{width:100%}</style>"
        f"<h1>{html.escape(title)}</h1>{''.join(parts)}"
        f"<h2>Report</h2><pre>{html.escape(as_json(report))}</pre></html>"
    )


def _cdf(values: Iterable[float]) -> Points:
    ordered = sorted(values)
    step = max(1, len(ordered) // POINTS)
    return [(ordered[i], (i + 1) / len(ordered)) for i in range(0, len(ordered), step)]


def _chart(title: str, series: Mapping[str, Points], axis: str) -> str:
    every = [point for points in series.values() for point in points]
    if not every:
        return ""
    right = max(x for x, _ in every) or 1.0
    top = max(y for _, y in every) or 1.0

    def place(x: float, y: float) -> str:
        across = LEFT + (WIDTH - LEFT) * x / right
        return f"{across:.1f},{(HEIGHT - BOTTOM) * (1 - y / top) + 5:.1f}"

    lines = []
    for number, (name, points) in enumerate(series.items()):
        colour = COLOURS[number % len(COLOURS)]
        path = " ".join(place(x, y) for x, y in points)
        lines.append(f'<polyline fill="none" stroke="{colour}" stroke-width="1.5" points="{path}"/>')
        lines.append(
            f'<text x="{LEFT + 10 + 110 * number}" y="16" fill="{colour}">{html.escape(name)}</text>'
        )
    base = HEIGHT - BOTTOM + 5
    return (
        f'<h2>{html.escape(title)}</h2><svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" '
        f'aria-label="{html.escape(title)}" font-size="11">'
        f'<line x1="{LEFT}" y1="{base}" x2="{WIDTH}" y2="{base}" stroke="#999"/>'
        f'<line x1="{LEFT}" y1="5" x2="{LEFT}" y2="{base}" stroke="#999"/>'
        f'<text x="2" y="14">{top:.3g}</text><text x="2" y="{base}">0 {html.escape(axis)[:6]}</text>'
        f'<text x="{WIDTH - 50}" y="{HEIGHT - 8}">{right:.4g}</text>{"".join(lines)}</svg>'
    )


def _services(tenants: Mapping[str, Mapping[str, float]]) -> str:
    if len(tenants) < 2:
        return ""
    most = max(tenant["service"] for tenant in tenants.values()) or 1.0
    rows = "".join(
        f"<tr><td>{html.escape(name or '(none)')}<td>{tenant['requests']:.0f}"
        f'<td><svg width="300" height="12"><rect width="{300 * tenant["service"] / most:.0f}" height="12" '
        f'fill="{COLOURS[0]}"/></svg> {tenant["service"]:,.0f}'
        for name, tenant in sorted(tenants.items(), key=lambda item: -item[1]["service"])
    )
    return f"<h2>Service of tenants</h2><table><tr><th>tenant<th>requests<th>service{rows}</table>"
