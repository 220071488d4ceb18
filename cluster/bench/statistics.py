"""What many measurements come to: percentiles, the spread of repetitions, ratios, and where goodput ends."""

from __future__ import annotations

import math
import random
import statistics
from collections.abc import Sequence
from typing import Literal

from pydantic import BaseModel, ConfigDict

MEETING = 0.9
"""The share of requests that must meet their objectives for a rate to count as served."""


RESAMPLES = 4000


class Value(BaseModel):
    """Plain data of a report; never changes."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Distribution(Value):
    """Mean and percentiles of one quantity over all its samples, in seconds; all None without samples."""

    count: int
    mean: float | None = None
    p50: float | None = None
    p90: float | None = None
    p99: float | None = None
    most: float | None = None

    @classmethod
    def of(cls, samples: Sequence[float]) -> Distribution:
        if not samples:
            return cls(count=0)
        ordered = sorted(samples)
        return cls(
            count=len(ordered),
            mean=statistics.fmean(ordered),
            p50=percentile(ordered, 50),
            p90=percentile(ordered, 90),
            p99=percentile(ordered, 99),
            most=ordered[-1],
        )


class Spread(Value):
    """One figure over several repetitions."""

    median: float
    low: float
    high: float
    values: tuple[float, ...]

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """Raises ValueError without values."""
        if not values:
            raise ValueError("a spread of nothing")
        return cls(median=statistics.median(values), low=min(values), high=max(values), values=tuple(values))


class Estimate(Value):
    """A median, and the interval in which that of endlessly many samples lies with a probability of 95 %.

    The interval is the percentile bootstrap's, from RESAMPLES draws that are the same each time.
    """

    median: float
    low: float
    high: float
    values: tuple[float, ...]

    @classmethod
    def of(cls, values: Sequence[float]) -> Estimate:
        """Raises ValueError without values."""
        if not values:
            raise ValueError("an estimate of nothing")
        rng = random.Random(0)
        medians = sorted(statistics.median(rng.choices(values, k=len(values))) for _ in range(RESAMPLES))
        low, high = percentile(medians, 2.5), percentile(medians, 97.5)
        return cls(median=statistics.median(values), low=low, high=high, values=tuple(values))


class Goodput(Value):
    """The highest rate at which MEETING of the requests meet their objectives.

    `bound` says whether the grid of rates shows it: `at` it lies between two of them, `at least` the highest
    was still served, `below` the lowest was not. `rate` is in requests a second.
    """

    rate: float
    bound: Literal["at", "at least", "below"]


def percentile(ordered: Sequence[float], percent: float) -> float:
    """Of samples in ascending order, interpolated linearly between neighbours as numpy does by default."""
    place = (len(ordered) - 1) * percent / 100
    below = math.floor(place)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (ordered[above] - ordered[below]) * (place - below)


def ratios(ours: Sequence[float], theirs: Sequence[float]) -> Spread | None:
    """Ours over theirs, repetition by repetition: what slows both down cancels. None without pairs."""
    pairs = [mine / other for mine, other in zip(ours, theirs, strict=False) if other > 0]
    return Spread.of(pairs) if pairs else None


def goodput(points: Sequence[tuple[float, float]]) -> Goodput:
    """From (rate, share of requests within their objectives), at least one point.

    Between the last rate that is served and the first that is not, the share is taken to fall linearly;
    a share that rises again later is noise and does not count.
    """
    ordered = sorted(points)
    served = [(rate, share) for rate, share in ordered if share >= MEETING]
    for index, (rate, share) in enumerate(ordered):
        if share < MEETING:
            if index == 0:
                return Goodput(rate=rate, bound="below")
            before, had = ordered[index - 1]
            return Goodput(rate=before + (rate - before) * (had - MEETING) / (had - share), bound="at")
    return Goodput(rate=served[-1][0], bound="at least")
