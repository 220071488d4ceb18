"""Carries out a request's Journey: asks the scheduler, starts instances, takes tokens, recovers from deaths.

run = driver.run(request, changed)     `changed` is set whenever there is something new
run.take()                             tokens of all choices since the last call, in order, once
run.ended, run.error                   whether there will be more, and what ended it if not itself
run.close()                            the client has left: every instance drops the request
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Coroutine, Sequence
from typing import Any, Protocol

from cluster import control_pb2 as pb
from cluster.arrival import ARRIVAL, Arrival
from cluster.instance_watch import Instance, Instances
from cluster.openai_errors import as_tandem
from cluster.run_progress import RunProgress
from cluster.settled import settled
from cluster.stream_order import Piece
from cluster.takeover import Before, Taken, gathered
from cluster.timeline import Timeline
from cluster.timelines import Timelines
from cluster.token_streams import TokenStreams
from cluster.trace_names import asked
from engine.errors import Overloaded, TandemError
from engine.request import Request
from engine.sequence import Epoch
from global_scheduler import journey as way
from global_scheduler.affinity import PrefixKeys
from global_scheduler.placement import Placement
from migration.wire import start_message

logger = logging.getLogger("tandem.gateway")

START_TIMEOUT = 10.0
"""Seconds an instance may take to accept a request before it is tried elsewhere."""

MOST_RUNS = 10_000
"""Requests under way in one gateway."""

CANCEL_TIMEOUT = 5.0

GAP_GRACE = 0.5
"""Seconds that tokens of a dead instance may still be on their way before they are drawn again."""


TAKE_TIMEOUT = 1.0
"""Seconds an instance may take to tell what it has of a request; it runs again if that is too short."""


class Scheduler(Protocol):
    """Decides where a request runs; raises a TandemError if nowhere."""

    async def place(self, request: pb.PlaceRequest) -> pb.Placement: ...


class RequestDriver:
    """All the requests of one gateway. `home` is the address that instances push to.

    `last_token` is when the latest token came, in seconds on the monotonic clock.
    """

    def __init__(
        self,
        home: str,
        streams: TokenStreams,
        scheduler: Scheduler,
        instances: Connect,
        patience: way.Patience,
        timelines: Timelines | None = None,
    ) -> None:
        self.home = home
        self.streams = streams
        self.scheduler = scheduler
        self.instances = Instances(instances, self._lost)
        self.patience = patience
        self.timelines = Timelines() if timelines is None else timelines
        self.runs: dict[str, Run] = {}
        self.last_token = float("-inf")
        self._background: set[asyncio.Task[None]] = set()

    def run(
        self,
        request: Request,
        changed: asyncio.Event,
        before: Before | None = None,
        *,
        resumable: bool = False,
    ) -> Run:
        """Begin a request, whose id no other has, or go on with one that ran for another gateway.

        A resumable one goes on at its instance when this gateway ends. Raises Overloaded when there are too
        many.
        """
        self._check_room()
        return Run(self, request, changed, before, resumable=resumable)

    async def take(self, name: str, digest: bytes, instances: Sequence[str]) -> dict[int, Taken]:
        """What instances have of a client's question by its name, and drop; by number of the prompt.

        Raises Overloaded when there are too many requests here to go on with it.
        """
        self._check_room()

        async def ask(instance: str) -> pb.TakenRequests:
            try:
                async with asyncio.timeout(TAKE_TIMEOUT):
                    answer = await self.instances.get(instance).take(name, digest.hex())
            except Exception as error:
                logger.debug("%s could not be asked for %s: %s", instance, name, error)
                return pb.TakenRequests()
            return pb.TakenRequests.FromString(answer)

        return gathered(await asyncio.gather(*map(ask, instances)))

    def _check_room(self) -> None:
        if len(self.runs) >= MOST_RUNS:
            raise Overloaded(f"{MOST_RUNS} requests run through this gateway; try again later")

    def spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.create_task(work)
        self._background.add(task)
        task.add_done_callback(self._background.discard)
        return task

    async def cancel(self, name: str, request_id: str) -> None:
        """Best effort: an instance that cannot be told is dead, or will be fenced at its next push."""
        try:
            async with asyncio.timeout(CANCEL_TIMEOUT):
                await self.instances.get(name).cancel(request_id)
        except Exception as error:
            logger.debug("%s could not be told to drop %s: %s", name, request_id, error)

    async def close(self) -> None:
        """End every request and wait until the instances have been told."""
        for run in list(self.runs.values()):
            if run.resumable:
                run.abandon()
            else:
                run.close()
        await asyncio.gather(*self._background, return_exceptions=True)
        await self.instances.close()

    def _lost(self, name: str, reason: str) -> None:
        for run in list(self.runs.values()):
            run.lost(name, reason)


class Connect(Protocol):
    def __call__(self, name: str) -> Instance: ...


class Run:
    """One request on its way; `progress` has its numbers, also while it runs."""

    def __init__(
        self,
        driver: RequestDriver,
        request: Request,
        changed: asyncio.Event,
        before: Before | None,
        *,
        resumable: bool,
    ) -> None:
        self.request = request
        self.resumable = resumable
        self.resumed = before is not None
        self.progress = RunProgress(started=time.monotonic())
        self.error: TandemError | None = None
        self._driver = driver
        self._changed = changed
        self._journey = way.Journey(request, driver.patience)
        self.timeline = _timeline(request)
        driver.timelines.open(self.timeline)
        self._order = driver.streams.open(request, self)
        self._placements: dict[str, pb.Placement] = {}
        self._timers: set[asyncio.Task[None]] = set()
        self._pieces: list[Piece] = []
        self._prefix = PrefixKeys(request.prompt, request.salt)
        driver.runs[request.id] = self
        now = time.monotonic()
        if before is None:
            self._step_all(self._journey.begin(now))
            return
        taken = before.taken
        self._pieces += before.pieces
        self._order.continued(before.pieces)
        self.progress.finishes += [piece.finish for piece in before.pieces if piece.finish]
        self.progress.placed(taken.instance, taken.instance, now)
        self.timeline.resumed(taken.instance, now)
        self._step_all(self._journey.go_on(taken.instance, taken.outputs, frozenset(taken.ends), now))

    def take(self) -> list[Piece]:
        """What has come since the last call."""
        pieces, self._pieces = self._pieces, []
        return pieces

    @property
    def ended(self) -> bool:
        return self._journey.state in way.ENDED

    def close(self) -> None:
        """Nobody reads any more: drop the request wherever it is. Harmless after the end."""
        self._step(way.Cancelled())

    def abandon(self) -> None:
        """This gateway ends: the request goes on where it is, for another one to take."""
        self._driver.runs.pop(self.request.id, None)
        self._driver.timelines.close(self.timeline)
        for timer in self._timers:
            timer.cancel()

    def lost(self, name: str, reason: str) -> None:
        """An instance died."""
        if name == self._journey.holder:
            self.timeline.trouble(f"{name}: {reason}")
        self._step(way.Lost(name, reason))
        if not self.ended and self._order.gaps():
            self._timer(self._mend(name))

    # What instances tell: see token_streams.Listener

    def tokens(self, instance: str, pieces: list[Piece], message: pb.Tokens) -> None:
        now = self._driver.last_token = time.monotonic()
        self.progress.take(instance, self._order.owner or instance, pieces, message, now)
        drawn = sum(piece.token is not None for piece in pieces)
        self.timeline.tokens(instance, message, drawn, now)
        self._pieces.extend(pieces)
        for piece in pieces:
            token = () if piece.token is None else (piece.token,)
            self._step(way.Progress(piece.choice, token, bool(piece.finish)))
        self._changed.set()

    def moved(self, instance: str, epoch: Epoch) -> None:
        self._driver.instances.get(instance)
        self.timeline.moved(instance, time.monotonic())
        self._step(way.Moved(instance, epoch))

    def failed(self, instance: str, error: TandemError) -> None:
        self.timeline.trouble(f"{instance}: {error.message}")
        self._step(way.Refused(error, instance))

    # What the journey wants done

    def _step(self, event: way.Event) -> None:
        self._step_all(self._journey.step(event, time.monotonic()))

    def _step_all(self, actions: tuple[way.Action, ...]) -> None:
        for action in actions:
            self._act(action)
        self.progress.recoveries = self._journey.recoveries

    def _act(self, action: way.Action) -> None:
        match action:
            case way.Fence(epoch):
                self._order.fence(epoch)
            case way.Cancel(instance):
                self._driver.spawn(self._driver.cancel(instance, self.request.id))
            case way.Place():
                self.timeline.placing(time.monotonic())
                self._timer(self._place(action))
            case way.Start():
                self._driver.spawn(self._start(action))
            case way.Wait(seconds):
                self._timer(self._wait(seconds))
            case way.Finish():
                self._end(None)
            case way.Fail(error):
                self._end(error)

    def _end(self, error: TandemError | None) -> None:
        self.error = error
        finishes = " ".join(sorted(set(self.progress.finishes)))
        self.timeline.tpot = self.progress.tpot
        outcome, detail = (finishes or "cancelled", "") if error is None else (error.code, error.message)
        self.timeline.finish(outcome, detail, time.monotonic())
        self._driver.timelines.close(self.timeline)
        self._driver.streams.close(self.request.id)
        self._driver.runs.pop(self.request.id, None)
        for timer in self._timers:
            timer.cancel()
        self._changed.set()

    def _timer(self, work: Coroutine[Any, Any, None]) -> None:
        """Work that ends with the request."""
        task = self._driver.spawn(work)
        self._timers.add(task)
        task.add_done_callback(self._timers.discard)

    async def _place(self, action: way.Place) -> None:
        asked = pb.PlaceRequest(
            request_id=self.request.id,
            tenant=self.request.tenant,
            priority=self.request.priority,
            prompt_tokens=action.prompt_tokens,
            max_tokens=action.max_tokens,
            n=action.choices,
            attempt=action.attempt,
            exclude=sorted(action.exclude | self._driver.instances.died()),
            adapter=self.request.adapter,
            prefix=self._prefix.then(self._journey.furthest),
            slo_ttft=self.request.slo.ttft or 0.0,
            slo_tpot=self.request.slo.tpot or 0.0,
        )
        try:
            found = await settled(self._driver.scheduler.place(asked))
        except Exception as error:
            self._step(way.Refused(as_tandem(error)))
            return
        self.progress.placed(found.prefill, found.decode, time.monotonic())
        self.timeline.placed(found.prefill, found.decode, found.reason, time.monotonic())
        self._placements[found.decode] = found
        self._step(way.Placed(Placement(found.prefill, found.decode, found.reason)))

    async def _start(self, action: way.Start) -> None:
        placement = action.placement
        decode = None
        if placement.decode != placement.prefill:
            found = self._placements[placement.decode]
            decode = found.decode_address if found.HasField("decode_address") else None
        message = start_message(self.request, action.epoch, self._driver.home, action.outputs, decode)
        name = placement.prefill
        dead = self._driver.instances.died() & {name, placement.decode}
        if dead:
            gone = Overloaded(f"instance {min(dead)} has died, which the scheduler does not know yet")
            self._step(way.Refused(gone, name))
            return
        try:
            if placement.decode != name:
                self._driver.instances.get(placement.decode)
            instance = self._driver.instances.get(name)
            async with asyncio.timeout(START_TIMEOUT):
                await instance.start(message.SerializeToString())
        except TimeoutError:
            self._step(
                way.Refused(
                    Overloaded(f"instance {name} did not take the request in {START_TIMEOUT:g} s"), name
                )
            )
        except TandemError as error:
            self._step(way.Refused(error, name))
        except Exception as error:
            self._step(way.Lost(name, str(error) or type(error).__name__))
        else:
            self._step(way.Started(action.epoch.attempt))
        if self.ended:
            await self._driver.cancel(name, self.request.id)

    async def _wait(self, seconds: float) -> None:
        await asyncio.sleep(seconds)
        self._step(way.Waited())

    async def _mend(self, dead: str) -> None:
        """Tokens that a dead instance drew before it passed the request on may have died with it."""
        before = self._order.gaps()
        while before:
            await asyncio.sleep(GAP_GRACE)
            after = self._order.gaps()
            if before.items() & after.items():
                self._step(way.Lost(self._journey.holder, f"tokens were lost with {dead}"))
                return
            before = after


def _timeline(request: Request) -> Timeline:
    """Begins when the client's request came, if one is being answered in this task."""
    now = time.monotonic()
    found = ARRIVAL.get()
    arrival = found or Arrival(now)
    timeline = Timeline(
        request.id,
        tenant=request.tenant,
        trace=arrival.trace,
        prompt_tokens=len(request.prompt),
        began=arrival.begun,
        now=now,
    )
    timeline.asked = asked(request.sampling)
    arrival.timelines.append(timeline)
    if found is None:
        timeline.answered(now)
    return timeline
