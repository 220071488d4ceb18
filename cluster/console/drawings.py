"""Where things are in the console's drawings: positions in percent, for SVG attributes, not styles.

A strict content security policy forbids styles in the page; attributes of SVG need none.
"""

from __future__ import annotations

from typing import Any

NARROWEST = 0.4
"""Percent of the width that even the shortest bar has, so that it can be seen."""


def phase_bars(timeline: dict[str, Any]) -> list[dict[str, Any]]:
    """The phases of a request with `x` and `width` in percent of its time."""
    whole = timeline["seconds"] or 1.0
    return [
        phase
        | {
            "x": round(100 * phase["start"] / whole, 3),
            "width": round(max(NARROWEST, 100 * phase["seconds"] / whole), 3),
            "share": phase["seconds"] / whole,
        }
        for phase in timeline["phases"]
    ]


def migration_bars(migrations: list[dict[str, Any]], now: float, window: float) -> list[dict[str, Any]]:
    """Migrations of the last `window` seconds with `x` and `width` in percent of it; the pause is `cut`."""
    begin = now - window
    bars = []
    for one in migrations:
        if one["time"] < begin:
            continue
        start = max(begin, one["time"] - one["seconds"])
        bars.append(
            one
            | {
                "x": round(100 * (start - begin) / window, 3),
                "width": round(max(NARROWEST, 100 * (one["time"] - start) / window), 3),
                "cut": round(max(NARROWEST / 2, 100 * one["downtime"] / window), 3),
            }
        )
    return bars
