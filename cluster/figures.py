"""What the controller counts of its own work: how long it decides, and how pools were resized."""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter

from cluster import control_pb2 as pb

SECONDS = (0.00001, 0.000025, 0.00005, 0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.05, 0.25)
"""Upper bounds of the buckets of a placement's time, in seconds."""


class Figures:
    """Since the controller began. Belongs to its event loop."""

    def __init__(self) -> None:
        self._buckets = [0] * (len(SECONDS) + 1)
        self._seconds = 0.0
        self._resized: Counter[tuple[str, str, str]] = Counter()

    def decided(self, seconds: float) -> None:
        """A placement took so long, whatever it came to."""
        self._buckets[bisect_left(SECONDS, seconds)] += 1
        self._seconds += seconds

    def resized(self, pool: str, before: int, after: int, reason: str) -> None:
        """A target was changed: by an operator's request, or by autoscaling."""
        who = "request" if reason.startswith("by request") else "autoscale"
        self._resized[pool, "up" if after > before else "down", who] += 1

    def message(self) -> pb.Figures:
        resized = [
            pb.ScaleCount(pool=pool, direction=direction, reason=reason, count=count)
            for (pool, direction, reason), count in sorted(self._resized.items())
        ]
        return pb.Figures(decisions=self._buckets, decision_seconds=self._seconds, resized=resized)
