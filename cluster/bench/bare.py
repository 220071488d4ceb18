"""The bare engine as a target: the core in its loop, without Ray, gateway, scheduler or text.

It takes the same workloads as a server does and gives the same figures, so that their ratio is what serving
adds. A request begins when it is handed to the loop; a token counts when the loop hands it out.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Sequence
from concurrent.futures import Future
from queue import Empty, SimpleQueue
from random import Random

from cluster.bench.load import Advance
from cluster.bench.machine import Busy, proportional
from cluster.bench.recording import Outcome
from cluster.bench.result import Result, result
from cluster.bench.target import fresh
from cluster.bench.workload import Objectives, Workload
from engine.core import EngineCore, Runner
from engine.errors import TandemError
from engine.loop import Clock, EngineLoop
from engine.outcome import Emitted
from engine.request import Request, Sampling
from simulator.workload.arrivals import Arrival

_PATIENCE = 600.0
"""Seconds that the next end of a request may take."""


class _Stopwatch:
    """The TokenSink: notes when each token of a request came, and tells who waits of each end."""

    def __init__(self) -> None:
        self.times: dict[str, list[float]] = {}
        self.failed: dict[str, str] = {}
        self.ended: SimpleQueue[str] = SimpleQueue()

    def fail(self, request_id: str, reason: str) -> None:
        self.failed[request_id] = reason
        self.ended.put(request_id)

    def push(self, emitted: Sequence[Emitted]) -> None:
        now = time.perf_counter()
        for one in emitted:
            request_id = one.key.request_id
            if one.drawn is None:
                self.fail(request_id, "the engine could not go on with the request")
                continue
            self.times[request_id].append(now)
            if one.finish is not None:
                self.ended.put(request_id)


class BareEngine:
    """One engine in this process. `pool` holds token ids that prompts are drawn from."""

    def __init__(
        self,
        name: str,
        core: EngineCore,
        runner: Runner,
        clock: Clock,
        pool: Sequence[int],
    ) -> None:
        self.name = name
        self._pool = pool
        self._watch = _Stopwatch()
        self._loop = EngineLoop(core, runner, self._watch, clock, name=name)
        self._number = 0
        self._loop.start()

    def close(self) -> None:
        self._loop.stop(10.0)

    def run(
        self,
        workload: Workload,
        repetition: int,
        objectives: Objectives,
        *,
        advance: Advance = lambda done, total: None,
    ) -> Result:
        """One repetition, as `load.run` does it against a server."""
        words = fresh()
        requests = [self._request(arrival, words) for arrival in workload.arrivals]
        begun: dict[str, float] = {}
        busy, start = Busy(()), time.perf_counter()
        if workload.at_once is None:
            late = self._arrive(workload, requests, begun, advance)
        else:
            late = 0.0
            self._in_turn(workload.at_once, requests, begun, advance)
        processor, wall = busy.since(), time.perf_counter() - start
        outcomes = [
            self._outcome(request, arrival, begun[request.id])
            for request, arrival in zip(requests, workload.arrivals, strict=True)
        ]
        return result(
            self.name,
            workload,
            repetition,
            outcomes,
            objectives,
            # What this process takes is the engine's: there is no client.
            processor=(processor[0], 0.0, processor[1]),
            late=late,
            wall=wall,
            known=True,
            memory=proportional((os.getpid(),)),
        )

    async def measure(
        self, workload: Workload, repetition: int, objectives: Objectives, advance: Advance
    ) -> Result:
        """The same, without blocking the event loop."""
        return await asyncio.to_thread(self.run, workload, repetition, objectives, advance=advance)

    def _request(self, arrival: Arrival, words: Random) -> Request:
        self._number += 1
        length = arrival.output_tokens
        sampling = Sampling(max_tokens=length, min_tokens=length, temperature=0.0, ignore_eos=True)
        prompt = tuple(words.choices(self._pool, k=arrival.prompt_tokens))
        return Request(f"bench-{self._number}", prompt, sampling)

    def _begin(self, request: Request, begun: dict[str, float]) -> None:
        self._watch.times[request.id] = []
        begun[request.id] = time.perf_counter()

        def refused(submitted: Future[None]) -> None:
            error = submitted.exception()
            if error is not None:
                self._watch.fail(request.id, str(error))

        # Nobody waits for it here: the loop takes all requests that have come between two steps.
        self._loop.call(lambda core: core.submit(request)).add_done_callback(refused)

    def _in_turn(
        self, at_once: int, requests: Sequence[Request], begun: dict[str, float], advance: Advance
    ) -> None:
        """All but the first `at_once` begin when another ends."""
        for request in requests[:at_once]:
            self._begin(request, begun)
        waiting = iter(requests[at_once:])
        for done in range(1, len(requests) + 1):
            self._wait()
            advance(done, len(requests))
            following = next(waiting, None)
            if following is not None:
                self._begin(following, begun)

    def _arrive(
        self, workload: Workload, requests: Sequence[Request], begun: dict[str, float], advance: Advance
    ) -> float:
        """Each begins at its time; gives the most that one was late, in seconds."""
        start, late = time.perf_counter(), 0.0
        for request, arrival in zip(requests, workload.arrivals, strict=True):
            due = start + arrival.at
            time.sleep(max(0.0, due - time.perf_counter()))
            late = max(late, time.perf_counter() - due)
            self._begin(request, begun)
        for done in range(1, len(requests) + 1):
            self._wait()
            advance(done, len(requests))
        return late

    def _wait(self) -> None:
        """Until one more request has ended. Raises TandemError if none does."""
        try:
            self._watch.ended.get(timeout=_PATIENCE)
        except Empty:
            reason = self._loop.failed or f"no request ended in {_PATIENCE:g} s"
            raise TandemError(f"the engine hangs: {reason}") from None

    def _outcome(self, request: Request, arrival: Arrival, begun: float) -> Outcome:
        times = self._watch.times.pop(request.id)
        return Outcome(
            begun=begun,
            times=tuple(times),
            asked_tokens=arrival.output_tokens,
            prompt_tokens=len(request.prompt),
            output_tokens=len(times),
            failure=self._watch.failed.get(request.id),
        )
