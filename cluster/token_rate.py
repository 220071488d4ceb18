"""How many tokens an instance has drawn a second lately, from the count that its statuses bring."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable

SPAN = 5.0
"""Seconds that count as lately: long enough for steps of a second, short enough to follow the load."""

LEAST = 0.1
"""Seconds between two counts that are kept, however often the status is asked for."""


class TokenRate:
    """The rate over the last SPAN seconds, or over the time since the first count."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._counts: deque[tuple[float, int]] = deque()

    def add(self, count: int) -> float | None:
        """Takes in how many there have ever been; gives how many a second, None from the first count."""
        now = self._clock()
        if not self._counts or now - self._counts[-1][0] >= LEAST:
            self._counts.append((now, count))
        while len(self._counts) > 1 and now - self._counts[1][0] >= SPAN:
            self._counts.popleft()
        since, before = self._counts[0]
        return max(0, count - before) / (now - since) if now - since >= LEAST else None
