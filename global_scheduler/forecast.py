"""What a load will be a little later, from what it was: a constant, or Holt-Winters with trend and season."""

from __future__ import annotations

from typing import Protocol

MOST_GROWTH = 4.0
"""A forecast may call for so many times the present load at most."""


class Forecast(Protocol):
    """Fed one sample for each interval of equal length."""

    def add(self, value: float) -> None: ...

    def ahead(self, intervals: int) -> float:
        """The value so many intervals after the last sample; 0 before the first."""


def growth(forecast: Forecast, load: float, intervals: int) -> float:
    """Feeds it the present load, and gives the load that is to be expected over it; 1 without any."""
    forecast.add(load)
    if load <= 0:
        return 1.0
    return min(MOST_GROWTH, max(1.0, forecast.ahead(intervals) / load))


class Constant:
    """Tomorrow is like today."""

    def __init__(self) -> None:
        self._last = 0.0

    def add(self, value: float) -> None:
        self._last = value

    def ahead(self, intervals: int) -> float:
        return self._last


class HoltWinters:
    """Additive triple exponential smoothing (Winters, 1960).

    `season` is in intervals, 0 for none. The first season only teaches the season: until its end the
    forecast has a level and a trend.
    """

    def __init__(
        self, season: int = 0, *, level: float = 0.3, trend: float = 0.05, seasonal: float = 0.2
    ) -> None:
        self._season = [0.0] * season
        self._alpha, self._beta, self._gamma = level, trend, seasonal
        self._level = self._trend = 0.0
        self._first: list[float] = []
        self._count = 0

    def add(self, value: float) -> None:
        season = len(self._season)
        place = self._count % season if season else 0
        self._count += 1
        if season and self._count <= season:
            self._first.append(value)
            if self._count == season:
                mean = sum(self._first) / season
                self._season = [one - mean for one in self._first]
                self._level, self._trend = mean, 0.0
                return
        learned = season and self._count > season
        offset = self._season[place] if learned else 0.0
        if self._count == 1:
            self._level = value
            return
        before = self._level
        self._level = self._alpha * (value - offset) + (1 - self._alpha) * (before + self._trend)
        self._trend = self._beta * (self._level - before) + (1 - self._beta) * self._trend
        if learned:
            self._season[place] = self._gamma * (value - self._level) + (1 - self._gamma) * offset

    def ahead(self, intervals: int) -> float:
        season = len(self._season)
        offset = self._season[(self._count + intervals - 1) % season] if self._count >= season > 0 else 0.0
        return max(0.0, self._level + intervals * self._trend + offset)
