"""Time that passes only when nothing is left to do at the present moment."""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable
from itertools import count

Callback = Callable[[], None]


class VirtualClock:
    """A Clock, and what is due when. What is due at the same time happens in the order it was asked for."""

    def __init__(self) -> None:
        self._now = 0.0
        self._due: list[tuple[float, int, Callback]] = []
        self._numbers = count()

    def now(self) -> float:
        return self._now

    def at(self, time: float, callback: Callback) -> None:
        heapq.heappush(self._due, (max(time, self._now), next(self._numbers), callback))

    def after(self, seconds: float, callback: Callback) -> None:
        self.at(self._now + seconds, callback)

    def run(self, until: float = math.inf, *, done: Callable[[], bool] = lambda: False) -> None:
        """Let everything happen that is due until `until`, or until `done` says that it is enough."""
        due = self._due
        while due and due[0][0] <= until and not done():
            self._now, _, callback = heapq.heappop(due)
            callback()
        if math.isfinite(until) and not done():
            self._now = max(self._now, until)
