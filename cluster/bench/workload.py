"""What is asked of a server: lengths and arrivals as people write them, and the requests they make.

lengths    128 · uniform:64:256 · lognormal:192:0.7:1024          median, sigma, and the longest
arrivals   poisson · gamma:3 · a trace's own                      coefficient of variation of the gaps
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Literal

from engine.errors import ConfigError
from simulator.workload import generators
from simulator.workload.arrivals import Arrival

P90 = 1.2815515655446004
"""Standard deviations from the median to the 90th percentile of a normal distribution."""
WIDEST = 12.2
"""Standard deviations from the mean that no draw exceeds, of a normal distribution of random.Random."""

LEAST_CV, MOST_CV = 1e-3, 1e3
"""Coefficients of variation that gaps can be drawn with; 0 stands for a metronome."""

Kind = Literal["single", "prefill", "batch", "rate", "trace"]
"""One stream · prompts one by one · many at once · arrivals at a rate · arrivals of a trace."""

LENGTH_FORMS = "128, uniform:64:256 or lognormal:192:0.7:1024 (median, sigma, longest)"


@dataclass(frozen=True, slots=True)
class Objectives:
    """Latency objectives of a request, in seconds."""

    ttft: float
    tpot: float


@dataclass(frozen=True, slots=True)
class Workload:
    """Requests for one run. `at_once` limits how many run together; None lets each begin when it arrives.

    `name` tells the test, `rate` is in requests a second, None without arrivals.
    """

    kind: Kind
    name: str
    arrivals: tuple[Arrival, ...]
    at_once: int | None = None
    rate: float | None = None


def length(text: str, rng: Random, *, param: str) -> generators.Length:
    """The distribution that `text` names. Raises ConfigError."""
    kind, _, rest = text.partition(":")
    try:
        if kind == "uniform":
            low, high = (int(part) for part in rest.split(":"))
            if 1 <= low <= high:
                return generators.uniform(low, high, rng)
        elif kind == "lognormal":
            parts = rest.split(":")
            median, sigma = float(parts[0]), float(parts[1])
            most = int(parts[2]) if len(parts) > 2 else None
            finite = 0 < median * math.exp(WIDEST * sigma) < math.inf
            if finite and median > 0 and sigma > 0 and len(parts) < 4 and (most is None or most >= 1):
                return generators.lognormal(median, median * math.exp(P90 * sigma), rng, high=most)
        elif (fixed := int(text)) >= 1:
            return generators.fixed(fixed)
    except (ValueError, IndexError, OverflowError):
        pass
    raise ConfigError(f"expected a length such as {LENGTH_FORMS}, got {text!r}", param=param)


def variation(text: str) -> float:
    """The coefficient of variation of the gaps that `poisson` or `gamma:CV` names. Raises ConfigError."""
    kind, _, rest = text.partition(":")
    try:
        if kind == "poisson" and not rest:
            return 1.0
        if kind == "gamma" and (float(rest) == 0 or LEAST_CV <= float(rest) <= MOST_CV):
            return float(rest)
    except ValueError:
        pass
    raise ConfigError(f"expected poisson or gamma:CV, such as gamma:3, got {text!r}", param="arrivals")


def closed(
    kind: Kind, name: str, *, requests: int, at_once: int, prompt: str, output: str, seed: int
) -> Workload:
    """Requests that are there from the start, `at_once` of them under way."""
    rng = Random(seed)
    draw_prompt, draw_output = length(prompt, rng, param="prompt"), length(output, rng, param="output")
    made = generators.make(itertools.repeat(0.0), draw_prompt, draw_output, requests)
    return Workload(kind, name, tuple(made), at_once=at_once)


def open_loop(rate: float, cv: float, *, requests: int, prompt: str, output: str, seed: int) -> Workload:
    """Requests that come at `rate` a second whether or not the server keeps up.

    Lengths and gaps are drawn from generators of their own, so that every rate asks for the same lengths.
    """
    lengths, gaps = Random(f"lengths {seed}"), Random(f"gaps {seed}")
    draw_prompt = length(prompt, lengths, param="prompt")
    draw_output = length(output, lengths, param="output")
    times = generators.gamma(rate, cv, gaps)
    made = generators.make(times, draw_prompt, draw_output, requests)
    return Workload("rate", f"rate {rate:g}", tuple(made), rate=rate)


def replayed(
    trace: Sequence[Arrival],
    file: Path,
    *,
    speed: float = 1.0,
    requests: int | None = None,
    shrink: float = 1.0,
    longest_prompt: int | None = None,
    longest_output: int | None = None,
) -> Workload:
    """A trace's first `requests`, `speed` times as fast, with lengths divided by `shrink` and then cut.

    Its rate is that of the requests that are replayed. Raises ConfigError for a trace without any.
    """
    taken = trace[:requests]
    if not taken:
        raise ConfigError(f"{file}: the trace has no requests", param="trace")
    start = taken[0].at
    made = tuple(
        Arrival(
            at=(one.at - start) / speed,
            prompt_tokens=_shrunk(one.prompt_tokens, shrink, longest_prompt),
            output_tokens=_shrunk(one.output_tokens, shrink, longest_output),
            tenant=one.tenant,
            prefix=one.prefix if shrink == 1 and longest_prompt is None else (),
        )
        for one in taken
    )
    name = file.name.removesuffix(".gz").rpartition(".")[0] or file.name
    span = made[-1].at
    return Workload("trace", name, made, rate=(len(made) - 1) / span if span > 0 else None)


def _shrunk(tokens: int, shrink: float, longest: int | None) -> int:
    length = max(1, round(tokens / shrink))
    return length if longest is None else min(length, longest)
