"""Measures servers one beside the other: every test on each in turn, several times, in changing order.

    repetition 1   test 1: A B    test 2: B A    …
    repetition 2   test 1: B A    test 2: A B    …

What the machine does beside it falls on all of them alike, so ratios hold where absolute figures waver.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

from cluster.bench.load import Advance
from cluster.bench.machine import Machine
from cluster.bench.report import Server, ServeReport, summarise
from cluster.bench.result import Result
from cluster.bench.target import Target
from cluster.bench.workload import Objectives, Workload, closed, open_loop
from engine.errors import ConfigError

TEST_FORMS = "single, prefill=512, batch=32 or rate=2"
LEAST_REQUESTS = 30
RATE_SECONDS = 20
FASTEST = 1e6
"""The highest rate, in requests a second: far more than one client can send."""

Plan = Callable[[int], Workload]
"""Makes a test's requests for a repetition, so that each has lengths and arrivals of its own."""


@dataclass(frozen=True, slots=True)
class Shape:
    """What the tests ask for where it is not the standard: lengths, arrivals, requests at each rate."""

    prompt: str | None = None
    output: str | None = None
    variation: float = 1.0
    requests: int | None = None
    seed: int = 0


def plans_of(asked: Sequence[str], shape: Shape) -> list[Plan]:
    """The plans that `single`, `prefill=512,2048`, `batch=8,32` and `rate=1,2,4` stand for.

    Raises ConfigError for another word.
    """
    return [plan for text in asked for plan in _plans(text, shape)]


def _plans(text: str, shape: Shape) -> Iterator[Plan]:
    kind, _, given = text.partition("=")
    makers = {"prefill": _prefill, "batch": _batch, "rate": _rate}
    if kind == "single" and not given:
        yield _single(shape)
        return
    for value in given.split(","):
        if kind not in makers or not _positive(value, whole=kind != "rate"):
            raise ConfigError(f"expected a test such as {TEST_FORMS}, got {text!r}", param="tests")
        yield makers[kind](value, shape)


def _positive(text: str, *, whole: bool) -> bool:
    try:
        return int(text) > 0 if whole else 0 < float(text) <= FASTEST
    except ValueError:
        return False


def _single(shape: Shape) -> Plan:
    prompt, output = shape.prompt or "32", shape.output or "128"
    return lambda repetition: closed(
        "single", "single", requests=2, at_once=1, prompt=prompt, output=output, seed=shape.seed + repetition
    )


def _prefill(value: str, shape: Shape) -> Plan:
    name = f"prefill {value}"
    return lambda repetition: closed(
        "prefill", name, requests=4, at_once=1, prompt=value, output="1", seed=shape.seed + repetition
    )


def _batch(value: str, shape: Shape) -> Plan:
    count, prompt, output = int(value), shape.prompt or "128", shape.output or "128"
    requests = max(count, shape.requests or 0)
    return lambda repetition: closed(
        "batch",
        f"batch {count}",
        requests=requests,
        at_once=count,
        prompt=prompt,
        output=output,
        seed=shape.seed + repetition,
    )


def _rate(value: str, shape: Shape) -> Plan:
    rate = float(value)
    requests = shape.requests or max(LEAST_REQUESTS, round(RATE_SECONDS * rate))
    prompt, output = shape.prompt or "lognormal:192:0.7:1024", shape.output or "lognormal:64:0.5:256"
    return lambda repetition: open_loop(
        rate, shape.variation, requests=requests, prompt=prompt, output=output, seed=shape.seed + repetition
    )


class Subject(Protocol):
    """What is measured: a server under load, or an engine without one."""

    @property
    def name(self) -> str: ...

    async def measure(
        self, workload: Workload, repetition: int, objectives: Objectives, advance: Advance
    ) -> Result: ...


async def measure(
    subjects: Sequence[Subject],
    plans: Sequence[Plan],
    repetitions: int,
    objectives: Objectives,
    *,
    begin: Callable[[str], Advance],
    took: Callable[[Result], None] = lambda result: None,
    rest: float = 0.0,
) -> list[Result]:
    """Everything, in the order above. `begin` is told what starts and gives who is told of its progress.

    Between the turns of two subjects there are `rest` seconds, for what one still does after its last answer.
    """
    results: list[Result] = []
    for repetition in range(repetitions):
        for number, plan in enumerate(plans):
            workload = plan(repetition)
            turn = (repetition + number) % len(subjects)
            for subject in [*subjects[turn:], *subjects[:turn]]:
                if results and len(subjects) > 1:
                    await asyncio.sleep(rest)
                advance = begin(f"{subject.name}: {workload.name}, {repetition + 1} of {repetitions}")
                found = await subject.measure(workload, repetition, objectives, advance)
                took(found)
                results.append(found)
    return results


def report(
    command: str,
    machine: Machine,
    targets: Sequence[Target],
    results: Sequence[Result],
    settings: dict[str, str],
) -> ServeReport:
    """The report of what `measure` gave, from the servers that it was given; `machine` as it was before."""
    figures, ratios, goodput = summarise(results)
    return ServeReport(
        command=command,
        machine=machine,
        settings=settings,
        servers=tuple(
            Server(name=one.name, url=one.endpoint.url, model=one.model, prompts=one.prompts)
            for one in targets
        ),
        results=tuple(results),
        figures=figures,
        ratios=ratios,
        goodput=goodput,
    )
