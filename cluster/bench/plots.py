"""Line charts as inline SVG, for pages that need nothing from anywhere else."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from xml.sax.saxutils import escape

WIDTH, HEIGHT = 620.0, 320.0
LEFT, RIGHT, TOP, BOTTOM = 64.0, 16.0, 30.0, 46.0
COLOURS = ("#2563eb", "#dc2626", "#059669", "#d97706", "#7c3aed", "#0891b2", "#be185d", "#4d7c0f")


@dataclass(frozen=True, slots=True)
class Series:
    """A named line of points (x, y), with (low, high) of each where repetitions differ.

    A `limit` is drawn dashed in the colour of the series before it: what could be reached, not what was.
    """

    name: str
    points: Sequence[tuple[float, float]]
    spread: Sequence[tuple[float, float]] = ()
    limit: bool = False


@dataclass(frozen=True, slots=True)
class Axis:
    """`log` needs values above 0; `least` is shown in any case, unless None."""

    label: str
    log: bool = False
    least: float | None = 0.0


def line_chart(title: str, x: Axis, y: Axis, series: Sequence[Series]) -> str:
    """An SVG element; series without points are left out."""
    drawn = [one for one in series if one.points]
    across = _Scale(x, [px for one in drawn for px, _ in one.points], LEFT, WIDTH - RIGHT)
    heights = [py for one in drawn for _, py in one.points] + [
        v for one in drawn for p in one.spread for v in p
    ]
    up = _Scale(y, heights, HEIGHT - BOTTOM, TOP)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH:g} {HEIGHT:g}" role="img" '
        f'aria-label="{_quoted(title)}" class="plot">',
        f"<title>{escape(title)}</title>",
        *_grid(x, y, across, up),
    ]
    for one, colour in _coloured(drawn):
        parts += _line(one, colour, across, up)
    parts += _legend(drawn)
    return "\n".join([*parts, "</svg>"])


class _Scale:
    """From values to places on the page, with round ticks."""

    def __init__(self, axis: Axis, values: Sequence[float], start: float, end: float) -> None:
        self._map: Callable[[float], float] = math.log10 if axis.log else float
        low, high = (min(values), max(values)) if values else (1.0, 2.0)
        if not axis.log and axis.least is not None:
            low = min(low, axis.least)
        self.ticks = _powers(low, high) if axis.log else _steps(low, high)
        # Values beyond the last tick would leave the frame.
        low, high = min(low, self.ticks[0]), max(high, self.ticks[-1])
        self._low, self._span = self._map(low), (self._map(high) - self._map(low)) or 1.0
        self._start, self._length = start, end - start

    def __call__(self, value: float) -> float:
        return self._start + (self._map(value) - self._low) / self._span * self._length


def _steps(low: float, high: float) -> list[float]:
    """About five round numbers from at most `low` to at least `high`."""
    rough = (high - low) / 5 or abs(high) / 5 or 1.0
    size = 10.0 ** math.floor(math.log10(rough))
    step = next(size * factor for factor in (1, 2, 5, 10) if size * factor >= rough * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [number * step for number in range(first, max(last, first + 1) + 1)]


def _powers(low: float, high: float) -> list[float]:
    """Powers of two where they suffice, else of ten."""
    base = 2.0 if high / low <= 2.0**10 else 10.0
    first = math.floor(math.log(low, base) + 1e-9)
    last = math.ceil(math.log(high, base) - 1e-9)
    return [base**power for power in range(first, max(last, first + 1) + 1)]


def _grid(x: Axis, y: Axis, across: _Scale, up: _Scale) -> list[str]:
    parts = []
    for tick in up.ticks:
        parts.append(f'<path class="grid" d="M{LEFT:g} {up(tick):.1f}H{WIDTH - RIGHT:g}"/>')
        parts.append(_text(LEFT - 8, up(tick) + 4, _number(tick), "end"))
    for tick in across.ticks:
        parts.append(f'<path class="grid" d="M{across(tick):.1f} {TOP:g}V{HEIGHT - BOTTOM:g}"/>')
        parts.append(_text(across(tick), HEIGHT - BOTTOM + 16, _number(tick), "middle"))
    parts.append(_text((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 10, x.label, "middle"))
    middle = (TOP + HEIGHT - BOTTOM) / 2
    parts.append(
        f'<text x="14" y="{middle:.1f}" text-anchor="middle" '
        f'transform="rotate(-90 14 {middle:.1f})">{escape(y.label)}</text>'
    )
    return parts


def _coloured(drawn: Sequence[Series]) -> list[tuple[Series, str]]:
    """Each series with its colour; a limit has that of the series before it."""
    number, coloured = -1, []
    for one in drawn:
        number += not one.limit
        coloured.append((one, COLOURS[max(number, 0) % len(COLOURS)]))
    return coloured


def _line(one: Series, colour: str, across: _Scale, up: _Scale) -> list[str]:
    places = [(across(x), up(y)) for x, y in one.points]
    path = "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in places)
    dash = ' stroke-dasharray="5 4"' if one.limit else ""
    parts = [f'<path d="{path}" fill="none" stroke="{colour}" stroke-width="2"{dash}/>']
    for (x, _), (low, high) in zip(places, one.spread, strict=False):
        path = f"M{x:.1f} {up(low):.1f}V{up(high):.1f}"
        parts.append(f'<path d="{path}" stroke="{colour}" stroke-width="1" opacity="0.6"/>')
    for (x, y), (given_x, given_y) in zip(places, one.points, strict=True):
        if not one.limit:
            what = escape(f"{one.name}: {_number(given_x)} → {_number(given_y)}")
            parts.append(
                f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="{colour}"><title>{what}</title></circle>'
            )
    return parts


def _legend(drawn: Sequence[Series]) -> list[str]:
    """The names of the lines; one entry stands for all limits."""
    entries = [(one.name, f'stroke="{colour}"') for one, colour in _coloured(drawn) if not one.limit]
    if any(one.limit for one in drawn):
        entries.append(("limit", 'stroke="currentColor" stroke-dasharray="5 4"'))
    parts, x = [], LEFT
    for name, stroke in entries:
        parts.append(f'<path d="M{x:.1f} 14h18" fill="none" stroke-width="2" {stroke}/>')
        parts.append(_text(x + 23, 18, name, "start"))
        x += 36 + 6.6 * len(name)
    return parts


def _text(x: float, y: float, text: str, anchor: str) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'


def _number(value: float) -> str:
    if value and (abs(value) >= 10_000 or abs(value) < 0.001):
        return f"{value:.3g}"
    return f"{value:,.3f}".rstrip("0").rstrip(".")


def _quoted(text: str) -> str:
    return escape(text, {'"': "&quot;"})
