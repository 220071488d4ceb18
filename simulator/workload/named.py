"""A workload by name: the file of a trace, or a generator with its numbers."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from random import Random

from engine.errors import ConfigError
from simulator.workload.arrivals import Arrival
from simulator.workload.generators import Length, fixed, gamma, lognormal, make, power_law, uniform
from simulator.workload.traces import read_trace

MADE = "made"
DEFAULTS = {"rate": "1", "cv": "1", "prompt": "512", "output": "128", "requests": "1000"}


def workload(name: str, *, seed: int = 0, speed: float = 1.0, requests: int | None = None) -> list[Arrival]:
    """The arrivals of a trace file, or of `made:rate=5,cv=1,prompt=512,output=64,requests=1000`.

    A length is a number, `low-high` (uniform), `median~p90` (lognormal) or `mean^most` (power law). `speed`
    makes requests come so many times as fast, `requests` takes the first ones alone. Raises ConfigError.
    """
    if speed <= 0:
        raise ConfigError(f"the speed is {speed:g}: it must be above 0")
    arrivals = _made(name, seed) if name.partition(":")[0] == MADE else read_trace(Path(name))
    return [replace(one, at=one.at / speed) for one in arrivals[:requests]]


def _made(name: str, seed: int) -> list[Arrival]:
    items = (item.partition("=") for item in name.partition(":")[2].split(",") if item)
    given = {key: value for key, _, value in items}
    unknown = given.keys() - DEFAULTS.keys()
    if unknown:
        raise ConfigError(f"{name}: no {', '.join(sorted(unknown))}; there are {', '.join(DEFAULTS)}")
    values = DEFAULTS | given
    rng = Random(seed)
    try:
        times = gamma(float(values["rate"]), float(values["cv"]), rng)
        prompt, output = _length(values["prompt"], rng), _length(values["output"], rng)
        return make(times, prompt, output, int(values["requests"]))
    except (ArithmeticError, ValueError) as error:
        raise ConfigError(f"{name}: {error}") from error


def _length(text: str, rng: Random) -> Length:
    for sign, law in (("-", uniform), ("~", lognormal), ("^", power_law)):
        first, found, second = text.partition(sign)
        if found:
            return law(int(first), int(second), rng)
    return fixed(int(text))
