"""Made workloads: when requests come, and how long they are. Every draw is from the generator handed in."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator
from random import Random

from simulator.workload.arrivals import Arrival

Length = Callable[[], int]
"""Draws one length in tokens, at least 1."""


def poisson(rate: float, rng: Random) -> Iterator[float]:
    """Arrival times in seconds, for ever: `rate` a second, independent of each other."""
    return gamma(rate, 1.0, rng)


def gamma(rate: float, cv: float, rng: Random) -> Iterator[float]:
    """Arrival times whose gaps have the mean 1 / `rate` and the coefficient of variation `cv`.

    1 is Poisson, more is burstier, 0 is a metronome.
    """
    now = 0.0
    shape = 1.0 / (cv * cv) if cv > 0 else 0.0
    while True:
        now += rng.gammavariate(shape, 1.0 / (rate * shape)) if shape else 1.0 / rate
        yield now


def fixed(length: int) -> Length:
    return lambda: length


def uniform(low: int, high: int, rng: Random) -> Length:
    """Every length from `low` to `high`, both included, equally often."""
    return lambda: rng.randint(low, high)


def lognormal(median: float, p90: float, rng: Random, *, low: int = 1, high: int | None = None) -> Length:
    """Lengths whose logarithm is normal, cut to `low` … `high`."""
    sigma = math.log(p90 / median) / 1.2815515655446004  # the standard normal's 90th percentile

    def draw() -> int:
        length = max(low, round(rng.lognormvariate(math.log(median), sigma)))
        return length if high is None else min(high, length)

    return draw


def power_law(mean: float, high: int, rng: Random, *, low: int = 1) -> Length:
    """Lengths from `low` to `high` with P(x) ~ x^-a, `a` chosen so that their mean is `mean`.

    The long-tailed lengths of Llumnix (OSDI'24, §6.1). The continuous law is used, rounded down.
    """
    if not low < mean < (low + high) / 2:
        raise ValueError(f"no power law from {low} to {high} has the mean {mean}")
    small, large = -1.0, 64.0
    for _ in range(100):
        middle = (small + large) / 2
        small, large = (middle, large) if _power_mean(middle, low, high) > mean else (small, middle)
    exponent = (small + large) / 2
    power = 1.0 - exponent
    bottom, top = math.pow(low, power), math.pow(high, power)

    def draw() -> int:
        u = rng.random()
        if abs(power) < 1e-9:
            return int(low * (high / low) ** u)
        return int(math.pow(bottom + u * (top - bottom), 1.0 / power))

    return draw


def _power_mean(exponent: float, low: int, high: int) -> float:
    def integral(power: float) -> float:
        if abs(power) < 1e-9:
            return math.log(high / low)
        return (math.pow(high, power) - math.pow(low, power)) / power

    return integral(2.0 - exponent) / integral(1.0 - exponent)


def make(
    times: Iterator[float], prompt: Length, output: Length, count: int, *, tenant: str = "", adapter: str = ""
) -> list[Arrival]:
    """The first `count` requests."""
    return [Arrival(at, prompt(), output(), tenant, adapter) for at in itertools.islice(times, count)]
