"""One pool: keeps the instances that there are equal to the number that there should be.

    spawn ─▶ STARTING ─ ready ─▶ READY ─ scaled down ─▶ DRAINING ─ idle, or its time is up ─▶ stopped
                 │                 │                        │
                 └─ failed ────────┴─ died, hung ───────────┴─▶ gone: the next reconcile spawns another

`reconcile` compares and acts; whatever changes the pool calls it again at once through `kick`, and a beat
does so anyway.
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass
from typing import Any, TypeVar

from cluster import control_pb2 as pb
from cluster.config import ControlConfig
from cluster.events import NEXT_TRY, Events
from cluster.heartbeat import Told, hung
from cluster.member import Handle, Member, State
from cluster.mover import Mover
from cluster.starvation import Starvation
from cluster.status_message import status_from
from cluster.termination import end_here, is_here
from cluster.units import counted
from engine.errors import Fenced, InstanceDied, Overloaded, TandemError
from global_scheduler.scheduler import Scheduler

logger = logging.getLogger("tandem.controller")

FIRST_PAUSE = 0.5

PATIENCE = 4
"""Times call_timeout for which an instance is asked again before silence is taken for its end."""

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Authority:
    """Who speaks to the instances: a newer generation fences an older one. `memo` is left with each."""

    generation: int
    memo: Callable[[], bytes]
    fenced: Callable[[str], None]


class Pool:
    """The instances of one role. Runs in the controller's event loop; `spawn` makes an instance of a name."""

    def __init__(
        self,
        role: str,
        target: int,
        config: ControlConfig,
        *,
        authority: Authority,
        spawn: Callable[[str, str], Handle],
        scheduler: Scheduler,
        mover: Mover,
        events: Events,
        kick: Callable[[], None],
    ) -> None:
        self.role = role
        self.target = target
        self.members: dict[str, Member] = {}
        self.next = 0
        self.surge = 0
        self.failures = 0
        self.kick = kick
        self._config = config
        self._authority = authority
        self._spawn = spawn
        self._scheduler = scheduler
        self._mover = mover
        self._events = events
        self._tasks: set[asyncio.Task[Any]] = set()
        self._not_before = 0.0

    def scale(self, target: int) -> None:
        """Aim for `target` instances; an operator's wish also ends a pause after failed starts."""
        self.target = target
        self.failures, self._not_before = 0, 0.0
        self.kick()

    def count(self, state: State) -> int:
        return sum(member.state is state for member in self.members.values())

    def reconcile(self) -> None:
        """Start what is missing, unless the last starts failed a moment ago; drain what is too much, once it
        is known what those that were adopted have to do."""
        wanted = [member for member in self.members.values() if member.state is not State.DRAINING]
        missing = self.target + self.surge - len(wanted)
        if missing > 0 and time.monotonic() >= self._not_before:
            for _ in range(missing):
                self._start()
        unheard = any(member.adopted and member.state is State.STARTING for member in wanted)
        if missing < 0 and not unheard:
            wanted.sort(key=_dear)
            for member in wanted[:-missing]:
                self.drain(member, f"{self.role} is scaled to {self.target}", "scale_down")

    def adopt(self, name: str, handle: Handle) -> None:
        """Take over an earlier controller's instance."""
        member = Member(name, handle, time.time(), adopted=True)
        self.members[name] = member
        self._events.add("adopted", name, "found by name when the controller started")
        member.life = self._task(self._live(member))

    def hand_over(self, member: Member, other: Pool) -> None:
        """The instance has changed its role: it belongs to the other pool, and both targets follow."""
        assert member.life is not None
        member.life.cancel()
        del self.members[member.name]
        self.target -= 1
        other.target += 1
        other.members[member.name] = member
        member.instance.role = other.role
        self._scheduler.forget(member.name)
        member.life = other._task(other._stay(member))
        self.kick()

    async def close(self) -> None:
        """Stop looking after the instances; they go on."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _start(self) -> None:
        name = f"{self.role}-{self.next}"
        self.next += 1
        try:
            handle = self._spawn(name, self.role)
        except TandemError as error:
            self._failed(name, error)
            return
        self.members[name] = Member(name, handle, time.time())
        self._events.add("spawned", name, f"{self.role} has a target of {self.target}")
        self.members[name].life = self._task(self._live(self.members[name]))

    async def _live(self, member: Member) -> None:
        """One instance from its start to its death."""
        begun = time.monotonic()
        try:
            await member.handle.ready(self._config.start_timeout)
            await patiently(lambda: self._poll(member), self._config)
        except Fenced as error:
            self._authority.fenced(error.message)
            self._remove(member)
            return
        except TandemError as error:
            self._remove(member)
            if member.state is not State.DRAINING:
                self._failed(member.name, error)
            await killed(member.handle)
            return
        if member.state is State.DRAINING and not member.adopted:
            # It was to be killed before it was ready, and is there all the same.
            self._remove(member)
            await killed(member.handle)
            return
        if member.state is State.STARTING:
            member.state = State.READY
        self.failures = 0
        age = time.time() - member.instance.started
        how = f"started {age:.1f} s ago" if member.adopted else f"after {time.monotonic() - begun:.1f} s"
        self._events.add("ready", member.name, f"{how}, pid {member.instance.pid}")
        self.kick()
        await self._stay(member)

    async def _stay(self, member: Member) -> None:
        """Until the instance dies, is killed because it hangs, or has another controller."""
        death = asyncio.create_task(member.handle.lifetime())
        beats = Told(member.handle, self._config.beat / 2)
        hangs = asyncio.create_task(hung(beats, self._config, Starvation(lambda: _of_this_machine(member))))
        polls = asyncio.create_task(self._polls(member, beats))
        tasks = (death, hangs, polls)
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            polls.cancel()
            # First of all: to kill it takes a while, in which nothing more may be placed there.
            self._remove(member)
            self.kick()
            if not (polls.done() and not polls.cancelled() and polls.exception() is not None):
                await self._lose(member, death, hangs)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _lose(self, member: Member, death: asyncio.Task[None], hangs: asyncio.Task[str]) -> None:
        """Make sure that it is dead, and say why."""
        if hangs.done():
            self._events.add("hung", member.name, f"killed: {hangs.result()}")
            end_here(member.instance.pid, member.instance.node)
            await killed(member.handle)
        if not death.done():
            await asyncio.wait([death], timeout=self._config.call_timeout)
        if member.state is not State.DRAINING:
            error = death.exception() if death.done() and not death.cancelled() else None
            self._events.add("died", member.name, getattr(error, "message", "") or "it ended by itself")
        # It may only be out of reach; then it must not come back beside the one that takes its place.
        await killed(member.handle)

    async def _polls(self, member: Member, beats: Told) -> None:
        """Ask for its status with each beat, until it dies; raises Fenced once another controller has it."""
        while True:
            await asyncio.sleep(self._config.beat)
            try:
                await self._poll(member)
                if member.instance.HasField("beat"):
                    beats.tell(member.instance.beat)
            except InstanceDied:
                return
            except Fenced as error:
                self._authority.fenced(error.message)
                raise
            except TandemError as error:
                logger.debug("%s gives no status: %s", member.name, error)

    async def _poll(self, member: Member) -> None:
        asked = time.monotonic()
        answer = await member.handle.status(self._authority.generation, self._authority.memo())
        member.instance = pb.Instance.FromString(answer)
        self._scheduler.observe(status_from(member.instance.status), asked)
        if member.state is State.STARTING:
            member.cordoned = member.instance.cordoned
        if member.instance.state == State.DRAINING.value and member.emptying is None:
            self.drain(member, "it was told to end (SIGTERM)", "shutdown")
        if member.state is State.DRAINING or member.cordoned:
            self._scheduler.cordon(member.name)
        member.polled.set()

    def drain(self, member: Member, reason: str, cause: str) -> None:
        """Have an instance give its requests away and end; nothing if that is under way."""
        if member.state is State.DRAINING:
            return
        if member.emptying is not None:
            member.emptying.cancel()
        ready = member.state is State.READY or member.adopted
        member.state = State.DRAINING
        self._scheduler.cordon(member.name)
        self._events.add("draining", member.name, reason)
        self._task(self._drain(member, reason, cause) if ready else killed(member.handle))
        self.kick()

    async def _drain(self, member: Member, reason: str, cause: str) -> None:
        """Move its requests away and wait for the rest, bounded; what is left then the gateways recover."""
        begun = time.monotonic()
        leaving = self._task(self._mover.empty(member, cause, reason))
        try:
            await member.handle.drain(self._authority.generation)
            async with asyncio.timeout(self._config.drain_timeout):
                while True:
                    member.polled.clear()
                    await member.polled.wait()
                    if member.idle:
                        break
        except (TandemError, TimeoutError):
            pass
        finally:
            leaving.cancel()
        took = time.monotonic() - begun
        left = counted(member.requests, "request goes", "requests go") + " on elsewhere"
        left = left if member.requests else "nothing was left"
        self._events.add("drained", member.name, f"after {took:.1f} s, {left}")
        await self._end(member)

    async def _end(self, member: Member) -> None:
        try:
            await member.handle.stop(self._authority.generation)
        except Fenced as error:
            self._authority.fenced(error.message)

    def _failed(self, name: str, error: TandemError) -> None:
        pause = min(self._config.longest_pause, FIRST_PAUSE * 2.0**self.failures)
        self.failures += 1
        self._not_before = time.monotonic() + pause
        self._events.add("start_failed", name, f"{error.message}{NEXT_TRY} {pause:.1f} s")

    def _remove(self, member: Member) -> None:
        self.members.pop(member.name, None)
        self._scheduler.forget(member.name)

    def _task(self, work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task


async def patiently(ask: Callable[[], Awaitable[T]], config: ControlConfig) -> T:
    """What an instance answers, which may be slow or out of reach for a while: it is asked again while it
    raises Overloaded, for a few of `call_timeout`; then that is raised.
    """
    until = time.monotonic() + PATIENCE * config.call_timeout
    while True:
        try:
            return await ask()
        except Overloaded:
            if time.monotonic() >= until:
                raise
        await asyncio.sleep(config.beat)


async def killed(handle: Handle) -> None:
    """Kill an instance as well as that can be done: one that is not told ends as an orphan."""
    try:
        await handle.kill()
    except Exception:  # of whatever kind, Ray's too: what was to follow still has to
        logger.exception("an instance could not be killed")


def _dear(member: Member) -> tuple[bool, bool, int, float]:
    """The cheapest to lose first: not ready, cordoned, with the fewest requests, the youngest."""
    return (member.state is State.READY, not member.cordoned, member.requests, -member.started)


def _of_this_machine(member: Member) -> list[int]:
    """Who takes part in its beats: this process, and its own if it runs here."""
    here = is_here(member.instance.pid, member.instance.node)
    return [os.getpid(), member.instance.pid] if here else [os.getpid()]
