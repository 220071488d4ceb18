"""Charts as SVG text: lines over one another, and bars of who ran when."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence

from simulator.spans import Spans

WIDTH, HEIGHT, LEFT, BOTTOM, ROW = 720, 220, 60, 30, 7
COLOURS = ("#2563eb", "#d97706", "#059669", "#dc2626", "#7c3aed", "#0891b2", "#be185d", "#4d7c0f")

Points = Sequence[tuple[float, float]]


def chart(title: str, series: Mapping[str, Points], axis: str) -> str:
    """Lines from zero on, one colour each; "" where there is nothing to show."""
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
            f'<text x="{LEFT + 10}" y="{16 + 14 * number}" fill="{colour}">{html.escape(name)}</text>'
        )
    base = HEIGHT - BOTTOM + 5
    return _figure(
        title,
        HEIGHT,
        f'<line x1="{LEFT}" y1="{base}" x2="{WIDTH}" y2="{base}" stroke="#999"/>'
        f'<line x1="{LEFT}" y1="5" x2="{LEFT}" y2="{base}" stroke="#999"/>'
        f'<text x="2" y="14">{top:.3g}</text><text x="2" y="{base}">0 {html.escape(axis)[:6]}</text>'
        f'<text x="{WIDTH - 50}" y="{HEIGHT - 8}">{right:.4g}</text>{"".join(lines)}',
    )


def gantt(title: str, spans: Spans) -> str:
    """A row for each request: prefill and decode in their colours, and nothing while it waits."""
    every = [span for one in spans.requests.values() for span in one]
    if not every:
        return ""
    first = min(span.start for span in every)
    wide = (WIDTH - LEFT) / max(max(span.end for span in every) - first, 1e-9)
    bars = "".join(
        f'<rect x="{LEFT + wide * (span.start - first):.1f}" y="{20 + ROW * row}" height="{ROW - 2}" '
        f'width="{max(wide * (span.end - span.start), 0.5):.1f}" fill="{COLOURS[0 if span.decode else 1]}"/>'
        for row, one in enumerate(spans.requests.values())
        for span in one
    )
    height = 40 + ROW * len(spans.requests)
    last = first + (WIDTH - LEFT) / wide
    return _figure(
        title,
        height,
        f'<text x="{LEFT}" y="12" fill="{COLOURS[1]}">prefill</text>'
        f'<text x="{LEFT + 60}" y="12" fill="{COLOURS[0]}">decode</text>{bars}'
        f'<text x="{LEFT}" y="{height - 4}">{first:.4g}</text>'
        f'<text x="{WIDTH - 50}" y="{height - 4}">{last:.4g}</text>',
    )


def _figure(title: str, height: int, body: str) -> str:
    return (
        f'<h2>{html.escape(title)}</h2><svg viewBox="0 0 {WIDTH} {height}" role="img" '
        f'aria-label="{html.escape(title)}" font-size="11">{body}</svg>'
    )
