"""Numbers and times as people read them: the filters of the console's templates."""

from __future__ import annotations

import time
from datetime import UTC, datetime
from typing import Any

_SIZES = ("B", "KiB", "MiB", "GiB", "TiB")


def clock(seconds: float) -> str:
    """A time of day, in UTC: the reader's own zone is not known here."""
    return datetime.fromtimestamp(seconds, UTC).strftime("%H:%M:%S")


def moment(seconds: float) -> str:
    """A time as machines read it, for <time datetime>."""
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds")


def span(seconds: float | None) -> str:
    """A duration with three digits or so: 1.2 ms, 3.41 s, 5 min 20 s, 2 h 5 min."""
    if seconds is None:
        return "–"
    if seconds < 1:
        return f"{seconds * 1000:.1f} ms"
    if seconds < 120:
        return f"{seconds:.2f} s"
    minutes, rest = divmod(int(seconds), 60)
    if minutes < 120:
        return f"{minutes} min {rest} s"
    return f"{minutes // 60} h {minutes % 60} min"


def size(count: float) -> str:
    for unit in _SIZES:
        if count < 1024 or unit == _SIZES[-1]:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    raise AssertionError


def percent(share: float | None) -> str:
    return "–" if share is None else f"{100 * share:.0f} %"


def number(value: float | None) -> str:
    """With thin spaces between thousands."""
    return "–" if value is None else f"{value:,.0f}".replace(",", "\u202f")


def usage(instance: dict[str, Any]) -> float:
    """The share of an instance's KV blocks that are in use or reserved."""
    status = instance["status"] or {}
    total = status.get("blocks_total", 0)
    return (status["blocks_used"] + status["blocks_reserved"]) / total if total else 0.0


def since(seconds: float) -> str:
    return span(max(0.0, time.time() - seconds))


FILTERS = {
    "clock": clock,
    "moment": moment,
    "span": span,
    "size": size,
    "percent": percent,
    "number": number,
    "usage": usage,
    "since": since,
}
