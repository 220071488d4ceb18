"""One pool: keeps the instances that there are equal to the number that there should be.

    spawn ─▶ STARTING ─ ready ─▶ READY ─ scaled down ─▶ DRAINING ─ idle, or its time is up ─▶ stopped
                 │                 │                        │
                 └─ failed ────────┴─ died, silent ─────────┴─▶ gone: the next reconcile spawns another

`reconcile` compares and acts; whatever changes the pool calls it again at once through `kick`, and a beat
does so anyway.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, Protocol

from cluster import control_pb2 as pb
from cluster.config import ControlConfig
from cluster.events import Events
from cluster.status_message import status_from
from engine.errors import Fenced, InstanceDied, TandemError
from global_scheduler.scheduler import Scheduler

FIRST_PAUSE = 0.5


class State(Enum):
    STARTING = "starting"
    READY = "ready"
    DRAINING = "draining"


class Handle(Protocol):
    """What a pool asks of an instance: see InstanceHandle."""

    async def ready(self, within: float) -> bytes: ...

    async def status(self, generation: int | None = None, memo: bytes = b"") -> bytes: ...

    async def drain(self, generation: int | None = None) -> None: ...

    async def stop(self, generation: int | None = None) -> None: ...

    async def kill(self) -> None: ...

    async def lifetime(self) -> None: ...


@dataclass(slots=True)
class Member:
    """One instance of the pool, with the last that it said of itself."""

    name: str
    handle: Handle
    started: float
    state: State = State.STARTING
    instance: pb.Instance = field(default_factory=pb.Instance)
    polled: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def requests(self) -> int:
        return self.instance.status.running + self.instance.status.waiting

    @property
    def idle(self) -> bool:
        status = self.instance.status
        return not (self.requests or status.blocks_used or status.blocks_reserved)

    def message(self) -> pb.Instance:
        """The instance as operators see it."""
        message = pb.Instance()
        message.CopyFrom(self.instance)
        message.name = self.name
        message.state = self.state.value
        message.started = self.started
        return message


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
        events: Events,
        kick: Callable[[], None],
    ) -> None:
        self.role = role
        self.target = target
        self.members: dict[str, Member] = {}
        self.next = 0
        self._config = config
        self._authority = authority
        self._spawn = spawn
        self._scheduler = scheduler
        self._events = events
        self._kick = kick
        self._tasks: set[asyncio.Task[None]] = set()
        self._failures = 0
        self._not_before = 0.0

    def scale(self, target: int) -> None:
        """Aim for `target` instances; an operator's wish also ends a pause after failed starts."""
        self.target = target
        self._failures, self._not_before = 0, 0.0
        self._kick()

    def count(self, state: State) -> int:
        return sum(member.state is state for member in self.members.values())

    def reconcile(self) -> None:
        """Start what is missing, unless the last starts failed a moment ago; drain what is too much."""
        wanted = [member for member in self.members.values() if member.state is not State.DRAINING]
        missing = self.target - len(wanted)
        if missing > 0 and time.monotonic() >= self._not_before:
            for _ in range(missing):
                self._start()
        if missing < 0:
            # The cheapest to lose: not ready yet, then with the fewest requests, then the youngest.
            wanted.sort(key=lambda member: (member.state is State.READY, member.requests, -member.started))
            for member in wanted[:-missing]:
                self._begin_drain(member, f"{self.role} is scaled to {self.target}")

    def adopt(self, name: str, handle: Handle, *, stale: str = "") -> None:
        """Take over an earlier controller's instance; a reason in `stale` drains it."""
        member = Member(name, handle, time.time())
        self.members[name] = member
        self._events.add("adopted", name, "found by name when the controller started")
        self._task(self._live(member, stale))

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
        self._task(self._live(self.members[name]))

    async def _live(self, member: Member, stale: str = "") -> None:
        """One instance from its start to its death."""
        begun = time.monotonic()
        try:
            await member.handle.ready(self._config.start_timeout)
            await self._poll(member)
        except TandemError as error:
            await member.handle.kill()
            self._remove(member)
            if member.state is not State.DRAINING:
                self._failed(member.name, error)
            return
        if member.state is State.STARTING:
            member.state = State.READY
        self._failures = 0
        self._events.add(
            "ready", member.name, f"after {time.monotonic() - begun:.1f} s, pid {member.instance.pid}"
        )
        if stale:
            self._begin_drain(member, stale)
        self._kick()
        await self._watch(member)
        self._remove(member)
        self._kick()

    async def _watch(self, member: Member) -> None:
        """Ask for its status with each beat until it dies; an instance that stays silent is killed."""
        death = asyncio.create_task(member.handle.lifetime())
        heard = time.monotonic()
        try:
            while not death.done():
                await asyncio.wait([death], timeout=self._config.beat)
                try:
                    await self._poll(member)
                    heard = time.monotonic()
                except InstanceDied:
                    break
                except Fenced as error:
                    self._authority.fenced(error.message)
                    return
                except TandemError as error:
                    if time.monotonic() - heard > self._config.silence_timeout:
                        self._events.add("silent", member.name, f"killed: {error.message}")
                        await member.handle.kill()
            await asyncio.wait([death], timeout=self._config.call_timeout)
        finally:
            death.cancel()
        outcome = (await asyncio.gather(death, return_exceptions=True))[0]
        # It may only be out of reach; then it must not come back beside the one that takes its place.
        await member.handle.kill()
        if member.state is not State.DRAINING:
            self._events.add("died", member.name, getattr(outcome, "message", "") or "it ended by itself")

    async def _poll(self, member: Member) -> None:
        asked = time.monotonic()
        answer = await member.handle.status(self._authority.generation, self._authority.memo())
        member.instance = pb.Instance.FromString(answer)
        self._scheduler.observe(status_from(member.instance.status), asked)
        if member.instance.state == State.DRAINING.value:
            self._begin_drain(member, "it was told to end (SIGTERM)")
        if member.state is State.DRAINING:
            self._scheduler.cordon(member.name)
        member.polled.set()

    def _begin_drain(self, member: Member, reason: str) -> None:
        if member.state is State.DRAINING:
            return
        ready = member.state is State.READY
        member.state = State.DRAINING
        self._scheduler.cordon(member.name)
        self._events.add("draining", member.name, reason)
        self._task(self._drain(member) if ready else member.handle.kill())
        self._kick()

    async def _drain(self, member: Member) -> None:
        """Wait until its requests are done, bounded; what is left then is recovered by the gateways."""
        begun = time.monotonic()
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
        took = time.monotonic() - begun
        left = f"{member.requests} requests go on elsewhere" if member.requests else "nothing was left"
        self._events.add("drained", member.name, f"after {took:.1f} s, {left}")
        await self._end(member)

    async def _end(self, member: Member) -> None:
        try:
            await member.handle.stop(self._authority.generation)
        except Fenced as error:
            self._authority.fenced(error.message)

    def _failed(self, name: str, error: TandemError) -> None:
        pause = min(self._config.longest_pause, FIRST_PAUSE * 2.0**self._failures)
        self._failures += 1
        self._not_before = time.monotonic() + pause
        self._events.add("start_failed", name, f"{error.message}; the next try is in {pause:.1f} s")

    def _remove(self, member: Member) -> None:
        self.members.pop(member.name, None)
        self._scheduler.forget(member.name)

    def _task(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
