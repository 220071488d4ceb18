"""A running cluster and its simulation, one beside the other: the same trace, the same policies.

trace ─┬─▶ cluster ────────────▶ times, placements as recorded ─┐
       └─▶ simulator ◀─ profile ▶ times, placements ────────────┴─▶ how far apart
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from cluster.bench.load import Advance, run
from cluster.bench.machine import Machine
from cluster.bench.result import Result
from cluster.bench.statistics import Value
from cluster.bench.target import WARM_UP, Target
from cluster.bench.workload import Objectives, Workload, closed
from cluster.recording import read_tape
from engine.errors import ConfigError, TandemError
from global_scheduler.tape import Decided, Input
from simulator.report import summarise
from simulator.setup import Setup
from simulator.simulate import simulate

ALONE = closed("single", "one by one", requests=6, at_once=1, prompt="64", output="32", seed=0)
"""What serving adds is measured with these."""

HOPS = 2
"""Messages before an instance has a request: the scheduler is asked, the instance is told."""

NO_OBJECTIVES = Objectives(WARM_UP, WARM_UP)

Places = tuple[str, str]
"""Where a request was placed for prefill and for decode; two empty names if it was refused."""


class Mean(Value):
    """Of one quantity over all requests, in seconds. `error` is simulated over measured, less 1."""

    name: str
    measured: float
    simulated: float
    error: float


class Serving(Value):
    """What serving adds, in seconds: to each step, and to each message."""

    step: float
    message: float


class MirrorReport(Value):
    """The item of `tandem bench mirror -o json`.

    `alike` of `placements` first placements, in the order of their deciding, name the same two instances.
    """

    command: str
    machine: Machine
    settings: dict[str, str]
    placements: int
    alike: int
    share: float
    means: tuple[Mean, ...]
    serving: Serving
    result: Result


async def mirror(
    target: Target,
    workload: Workload,
    setup: Callable[[Serving], Setup],
    tape: Path,
    instances: Mapping[str, str],
    *,
    within: float,
    advance: Advance = lambda done, total: None,
) -> MirrorReport:
    """Replay, then simulate. `tape` is where the cluster's controller records decisions on this machine,
    `instances` gives the role of each by its name.

    Raises ConfigError if the requests are not what is recorded there, TandemError if some failed.
    """
    machine, known = Machine.here(), _ranks(instances)
    serving = added(await _replay(target, ALONE, within), setup)
    before = len(first_placements(read_tape(tape)))
    measured = await _replay(target, workload, within, advance)
    recorded = first_placements(read_tape(tape), known)[before:]
    if len(recorded) != len(workload.arrivals):
        raise ConfigError(
            f"{tape} has {len(recorded)} new decisions for {len(workload.arrivals)} requests: it has to be "
            "what this cluster records, and nobody else may ask it meanwhile",
            param="scheduler.record",
        )
    decided: list[Input] = []
    simulated = summarise(simulate(setup(serving), workload.arrivals, tape=decided.append))
    placed = first_placements(decided)
    alike = sum(one == other for one, other in zip(recorded, placed, strict=False))
    return MirrorReport(
        command="mirror",
        machine=machine,
        settings={},
        placements=len(recorded),
        alike=alike,
        share=alike / len(recorded),
        means=(
            _mean("time to first token", measured.ttft.mean, simulated["ttft"]),
            _mean("time per output token", measured.tpot.mean, simulated["tpot"]),
            _mean("end to end", measured.latency.mean, simulated["e2e"]),
        ),
        serving=serving,
        result=measured,
    )


async def _replay(
    target: Target, workload: Workload, within: float, advance: Advance = lambda done, total: None
) -> Result:
    found = await run(target, workload, 0, NO_OBJECTIVES, within=within, advance=advance)
    if found.failed:
        raise TandemError(f"{found.failed} of {found.requests} requests failed: {found.errors[0]}")
    return found


def added(measured: Result, setup: Callable[[Serving], Setup]) -> Serving:
    """By how much requests one by one take longer than their steps alone; medians, never below 0."""
    spaced = [replace(one, at=60.0 * number) for number, one in enumerate(ALONE.arrivals)]
    bare = summarise(simulate(setup(Serving(step=0.0, message=0.0)), spaced))
    step = max(0.0, (measured.tpot.p50 or 0.0) - bare["tpot"]["p50"])
    first = (measured.ttft.p50 or 0.0) - bare["ttft"]["p50"] - step
    return Serving(step=step, message=max(0.0, first / HOPS))


def first_placements(tape: Iterable[Input], known: Mapping[str, str] | None = None) -> Sequence[Places]:
    """Of each request in the order of deciding; where it was tried again after a failure is left out.

    `known` gives names that are to be taken instead.
    """
    names = known or {}
    return [
        (names.get(one.prefill, one.prefill), names.get(one.decode, one.decode))
        for one in tape
        if isinstance(one, Decided) and one.summary.attempt == 0
    ]


def _ranks(instances: Mapping[str, str]) -> dict[str, str]:
    """What the simulator calls them: by role and rank. A cluster never uses a name again."""
    found: dict[str, str] = {}
    for role in set(instances.values()):
        names = sorted((name for name in instances if instances[name] == role), key=lambda n: (len(n), n))
        found |= {name: f"{role}-{rank}" for rank, name in enumerate(names)}
    return found


def _mean(name: str, measured: float | None, simulated: dict[str, float]) -> Mean:
    real, predicted = measured or 0.0, simulated.get("mean", 0.0)
    error = predicted / real - 1 if real else 0.0
    return Mean(name=name, measured=real, simulated=predicted, error=error)
