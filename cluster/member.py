"""An instance as its pool sees it: how it is reached, its state, and the last that it said of itself."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from enum import Enum
from typing import Protocol

from cluster import control_pb2 as pb


class State(Enum):
    STARTING = "starting"
    READY = "ready"
    DRAINING = "draining"


class Handle(Protocol):
    """What a pool asks of an instance: see InstanceHandle."""

    async def ready(self, within: float) -> bytes: ...

    async def status(self, generation: int | None = None, memo: bytes = b"") -> bytes: ...

    async def beat(self) -> bytes: ...

    async def move(self, order: bytes, within: float) -> bytes: ...

    async def requests(self) -> bytes: ...

    async def exchange(self, counters: bytes) -> bytes: ...

    async def afflict(self, fault: str) -> None: ...

    async def cordon(self, on: bool, generation: int | None = None) -> None: ...

    async def change_role(self, role: str, generation: int | None = None) -> None: ...

    async def drain(self, generation: int | None = None) -> None: ...

    async def undrain(self, generation: int | None = None) -> None: ...

    async def stop(self, generation: int | None = None) -> None: ...

    async def kill(self) -> None: ...

    async def lifetime(self) -> None: ...


@dataclass(slots=True)
class Member:
    """One instance of the pool, with the last that it said of itself.

    On a `cordoned` one nothing new is placed; `emptying` moves away what it has, by an operator's wish. An
    `adopted` one may have requests before it is ready.
    """

    name: str
    handle: Handle
    started: float
    state: State = State.STARTING
    instance: pb.Instance = field(default_factory=pb.Instance)
    polled: asyncio.Event = field(default_factory=asyncio.Event)
    cordoned: bool = False
    adopted: bool = False
    emptying: asyncio.Task[None] | None = None
    life: asyncio.Task[None] | None = None

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
        message.state = State.DRAINING.value if self.emptying is not None else self.state.value
        message.cordoned = self.cordoned or self.state is State.DRAINING
        message.started = self.started
        return message
