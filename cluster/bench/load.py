"""Runs one workload against one server and records every answer."""

from __future__ import annotations

import asyncio
import gc
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from cluster.bench.machine import Busy, memory
from cluster.bench.recording import Outcome, Recording, read
from cluster.bench.result import Result, result
from cluster.bench.target import Target, fresh
from cluster.bench.workload import Objectives, Workload

Advance = Callable[[int, int], None]
"""Told how many requests are done, and of how many."""


@dataclass(slots=True)
class _Run:
    """Requests on their way. `late` is the most that one was sent after its time."""

    target: Target
    messages: list[bytes]
    workload: Workload
    within: float
    advance: Advance
    recordings: list[Recording | None] = field(default_factory=list)
    done: int = 0
    late: float = 0.0

    async def all(self) -> None:
        self.recordings = [None] * len(self.messages)
        if self.workload.at_once is not None:
            numbers = iter(range(len(self.messages)))
            await asyncio.gather(*(self._in_turn(numbers) for _ in range(self.workload.at_once)))
            return
        begun = time.perf_counter()
        async with asyncio.TaskGroup() as group:
            for number, arrival in enumerate(self.workload.arrivals):
                due = begun + arrival.at
                await asyncio.sleep(max(0.0, due - time.perf_counter()))
                self.late = max(self.late, time.perf_counter() - due)
                group.create_task(self._one(number))

    async def _in_turn(self, numbers: Iterator[int]) -> None:
        """One of those who are served at once: takes the next request as soon as the last is done."""
        for number in numbers:
            await self._one(number)

    async def _one(self, number: int) -> None:
        self.recordings[number] = await self.target.ask(self.messages[number], within=self.within)
        self.done += 1
        self.advance(self.done, len(self.messages))


async def run(
    target: Target,
    workload: Workload,
    repetition: int,
    objectives: Objectives,
    *,
    within: float,
    advance: Advance = lambda done, total: None,
) -> Result:
    """One repetition; a request may take `within` seconds.

    Bodies are made before and answers read after, so that nothing else runs meanwhile.
    """
    words = fresh()
    messages = [
        target.endpoint.message("/v1/completions", target.body(arrival, words))
        for arrival in workload.arrivals
    ]
    going = _Run(target, messages, workload, within, advance)
    gc.collect()
    gc.disable()
    try:
        busy, begun = Busy(target.pids), time.perf_counter()
        await going.all()
        processor, wall = busy.since(), time.perf_counter() - begun
    finally:
        gc.enable()
    return result(
        target.name,
        workload,
        repetition,
        _outcomes(going, workload),
        objectives,
        processor=processor,
        late=going.late,
        wall=wall,
        known=bool(target.pids),
        memory=memory(target.pids),
    )


@dataclass(frozen=True, slots=True)
class Loaded:
    """A server as something to be measured."""

    target: Target
    within: float

    @property
    def name(self) -> str:
        return self.target.name

    async def measure(
        self, workload: Workload, repetition: int, objectives: Objectives, advance: Advance
    ) -> Result:
        return await run(self.target, workload, repetition, objectives, within=self.within, advance=advance)


def _outcomes(going: _Run, workload: Workload) -> list[Outcome]:
    return [
        read(recording, prompt_tokens=arrival.prompt_tokens, asked_tokens=arrival.output_tokens)
        for recording, arrival in zip(going.recordings, workload.arrivals, strict=True)
        if recording is not None
    ]
