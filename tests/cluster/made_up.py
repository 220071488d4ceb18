"""Made-up instances, and a controller that has them: see test_controller and test_operations."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

from cluster import control_pb2 as pb
from cluster.config import Config, ControlConfig, DecodePool, PoolsConfig, PrefillPool
from cluster.controller import Controller
from cluster.memo import Memo
from cluster.settings_change import fingerprint
from engine.errors import Conflict, Fenced, InstanceDied, Overloaded, TandemError

CONTROL = ControlConfig(
    token="secret", beat=0.01, drain_timeout=5.0, silence_timeout=5.0, call_timeout=1.0, longest_pause=0.02
)
POOLS = PoolsConfig(prefill=PrefillPool(replicas=1), decode=DecodePool(replicas=2))
CONFIG = Config(control=CONTROL, pools=POOLS)


class MadeUp:
    """An instance that does what a test sets."""

    def __init__(self, name: str, role: str, memo: bytes, fleet: Fleet) -> None:
        self.name = name
        self.role = role
        self.fleet = fleet
        self.left = memo
        self.running: dict[str, str] = {}
        self.moves = asyncio.Event()
        self.moves.set()
        self.undrains = asyncio.Event()
        self.undrains.set()
        self.turns = asyncio.Event()
        self.turns.set()
        self.stubborn = False
        self.cordoned = False
        self.generation = Memo.from_bytes(memo).generation
        self.status_message = pb.InstanceStatus(
            instance=name, role=role, blocks_total=100, blocks_free=100, block_size=16
        )
        self.state = "ready"
        self.version, self.settings = fleet.version, fleet.settings
        self.loaded = asyncio.Event()
        self.loaded.set()
        self.dead = asyncio.Event()
        self.reason = "killed by a test"
        self.error: TandemError | None = None
        self.stopped = False
        self.present = pb.Beat()
        self.model = pb.Model()
        self.calls: list[str] = []

    def run(self, *requests: str, phase: str = "decode") -> None:
        """It has these requests from now on."""
        self.running |= dict.fromkeys(requests, phase)
        self.count()

    def count(self) -> None:
        for one in self.fleet.made.values():
            one.status_message.running = len(one.running)

    def die(self, reason: str) -> None:
        self.reason = reason
        self.dead.set()

    def answer(self) -> bytes:
        if self.dead.is_set():
            raise InstanceDied(self.reason)
        if self.error is not None:
            raise self.error
        self.status_message.role = self.role
        instance = pb.Instance(
            name=self.name,
            role=self.role,
            pid=7,
            state=self.state,
            status=self.status_message,
            cordoned=self.cordoned,
            version=self.version,
            settings=self.settings,
            model=self.model if self.model.name else None,
        )
        instance.address.tcp, instance.address.instance = f"host-of-{self.name}:1", self.name
        return instance.SerializeToString()

    async def ready(self, within: float) -> bytes:
        try:
            # Not wait_for, which may lose a cancellation.
            async with asyncio.timeout(within):
                await self.loaded.wait()
        except TimeoutError:
            raise Overloaded(f"instance {self.name} did not answer ready in time") from None
        return self.answer()

    async def memo(self) -> tuple[bytes, str]:
        self.answer()
        return self.left, self.role

    async def requests(self) -> bytes:
        self.answer()
        found = [
            pb.RunningRequest(id=id, instance=self.name, role=self.role, phase=phase, age=age)
            for age, (id, phase) in enumerate(self.running.items())
        ]
        return pb.RequestList(requests=found).SerializeToString()

    async def move(self, order: bytes, within: float) -> bytes:
        asked = pb.MoveOrder.FromString(order)
        self.calls.append(f"move {asked.request_id} to {asked.to.tcp}")
        await self.moves.wait()
        done = pb.Migration(
            request_id=asked.request_id, source=self.name, destination=asked.to.instance, reason=asked.reason
        )
        phase = self.running.get(asked.request_id)
        if phase is None or self.stubborn:
            done.outcome, done.detail = "aborted", "it will not"
        else:
            done.outcome, done.stages, done.downtime = "committed", 2, 0.02
            del self.running[asked.request_id]
            self.fleet.made[asked.to.instance].running[asked.request_id] = phase
        self.count()
        return done.SerializeToString()

    async def cordon(self, on: bool, generation: int | None = None) -> None:
        self.answer()
        self.cordoned = on

    async def change_role(self, role: str, generation: int | None = None) -> None:
        self.answer()
        if self.running:
            raise Conflict("it has requests")
        await self.turns.wait()
        self.calls.append(f"become {role}")
        self.role, self.state = role, "ready"

    async def undrain(self, generation: int | None = None) -> None:
        self.calls.append("undrain")
        await self.undrains.wait()
        self.state = "ready"

    async def status(self, generation: int | None = None, memo: bytes = b"") -> bytes:
        assert generation is not None
        if generation < self.generation:
            raise Fenced(f"generation {self.generation} has {self.name}")
        self.generation, self.left = generation, memo
        return self.answer()

    async def beat(self) -> bytes:
        if self.stopped:
            await asyncio.Event().wait()
        self.answer()
        return self.present.SerializeToString()

    async def drain(self, generation: int | None = None) -> None:
        self.calls.append("drain")
        self.state = "draining"

    async def stop(self, generation: int | None = None) -> None:
        self.calls.append("stop")
        self.die("stopped")

    async def kill(self) -> None:
        self.calls.append("kill")
        self.die("killed")

    async def lifetime(self) -> None:
        await self.dead.wait()
        raise InstanceDied(self.reason)


class Fleet:
    """Where made-up instances live: longer than a controller."""

    def __init__(self) -> None:
        self.made: dict[str, MadeUp] = {}
        self.version, self.settings = "test", fingerprint(CONFIG)
        self.prepare: Callable[[MadeUp], None] = lambda one: None

    def __getitem__(self, name: str) -> MadeUp:
        return self.made[name]

    @property
    def alive(self) -> list[str]:
        return sorted(name for name, one in self.made.items() if not one.dead.is_set())

    def spawn(self, name: str, role: str, generation: int, memo: bytes, instances: int) -> MadeUp:
        assert name not in self.made
        one = MadeUp(name, role, memo, self)
        self.prepare(one)
        self.made[name] = one
        return one

    def renewed(self, config: Config) -> Fleet:
        self.settings = fingerprint(config)
        return self

    async def existing(self) -> list[MadeUp]:
        return [self.made[name] for name in self.alive]


def run(test: Awaitable[None]) -> None:
    async def bounded() -> None:
        await asyncio.wait_for(test, 10.0)

    asyncio.run(bounded())


@asynccontextmanager
async def controlling(fleet: Fleet, config: Config = CONFIG) -> AsyncIterator[Controller]:
    fleet.settings = fingerprint(config)
    controller = Controller(config, fleet, version=fleet.version)
    await controller.start()
    try:
        yield controller
    finally:
        await controller.close()


async def seen(controller: Controller, kind: str, count: int = 1, subject: str = "") -> pb.Event:
    """The count-th event of a kind."""
    async for event in controller.events.follow(0):
        if event.kind == kind and subject in event.subject:
            count -= 1
            if not count:
                return event
    raise AssertionError
