"""The actor of an instance: what Ray calls. It owns model, KV cache and engine loop for its whole life.

    __init__ ─▶ load(), in a thread ─▶ serving ─▶ drain(), or SIGTERM: no new requests ─▶ stop() ─▶ exit
                                          └─ engine loop dead, or no controller for long ─▶ exit

All methods are async, so that none waits for another; what takes long happens in threads. A plain class: it
becomes an actor at spawn, and tests use it without Ray.
"""

from __future__ import annotations

import asyncio
import logging
import os
import platform
import time
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from concurrent.futures import Future
from typing import Any, Protocol

from cluster import control_pb2 as pb
from cluster import wall_clock
from cluster.config import Config
from cluster.cores import threads_of
from cluster.installation import installed_version
from cluster.settings_change import fingerprint
from cluster.status_message import charges_message, migration_message, request_list, status_message
from cluster.step_watch import Present
from cluster.termination import on_sigterm
from cluster.token_rate import TokenRate
from engine.errors import Conflict, Draining, Fenced, InstanceDied, Overloaded, TandemError
from engine.shared_service import News
from engine.status import InstanceStatus, RequestStatus
from migration.moved import Moved
from migration.transport import Address
from migration.wire import address_from_wire

logger = logging.getLogger("tandem.instance")

FAREWELL = 0.2
"""Seconds between the news of an instance's end and the end, for the news to leave."""

STATUS_WAIT = 0.1
"""Seconds a status waits for the engine's present step before the last known one has to do."""


class Instance(Protocol):
    """What a worker runs: see cluster/instance.py. Threads may call everything but `open` and `close`."""

    @property
    def description(self) -> pb.Instance: ...

    @property
    def ended(self) -> Future[None]: ...

    async def open(self) -> None: ...

    def start(self, start: bytes) -> Future[None]: ...

    def cancel(self, request_id: str) -> Future[bool]: ...

    def status(self) -> Future[InstanceStatus]: ...

    def present(self) -> Present: ...

    def move(self, request_id: str, to: Address, reason: str) -> Future[Moved]: ...

    def requests(self) -> Future[tuple[RequestStatus, ...]]: ...

    def take(self, name: str, digest: str) -> Awaitable[pb.TakenRequests]: ...

    def exchange(self, service: Mapping[str, float]) -> Future[News]: ...

    def afflict(self, fault: str) -> None: ...

    def change_role(self, role: str) -> None: ...

    def drain(self) -> None: ...

    def undrain(self) -> None: ...

    async def close(self) -> None: ...


Assemble = Callable[[Config, str, str, int], Instance]
"""Builds an instance from config, name, role and CPU threads; blocks while it loads."""


class Worker:
    """One instance. The cores of the machine are shared among `instances` of them."""

    def __init__(
        self,
        assemble: Assemble,
        config: str,
        name: str,
        role: str,
        memo: bytes,
        generation: int,
        instances: int,
    ) -> None:
        self._config = Config.model_validate_json(config)
        # Looked up now: an upgrade changes what is installed under a running process.
        self._version, self._settings = installed_version(), fingerprint(self._config)
        self.name = name
        self.role = role
        self._assemble = assemble
        self._memo = memo
        self._generation = generation
        self._threads = threads_of(self._config, instances)
        # Before torch is imported, which reads it then.
        os.environ["OMP_NUM_THREADS"] = str(self._threads)
        self._started = time.time()
        self._heard = time.monotonic()
        self._draining = False
        self._cordoned = False
        self._instance: Instance | None = None
        self._loading: asyncio.Task[Instance] | None = None
        self._asked: asyncio.Future[InstanceStatus] | None = None
        self._asked_at: float | None = None
        self._status: InstanceStatus | None = None
        self._rate = TokenRate()
        self._over: asyncio.Future[None] | None = None
        self._closing: asyncio.Task[None] | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    def __repr__(self) -> str:
        """Ray writes it at the head of the process's log, which is found by it when the process is gone."""
        return self.name

    async def load(self) -> None:
        """Begin to load, and return."""
        if self._loading is None:
            self._loading = asyncio.create_task(self._load())

    async def ready(self) -> bytes:
        """Load; a pb Instance when it serves. Raises SetupError."""
        await self.load()
        assert self._loading is not None
        await asyncio.shield(self._loading)
        return await self._describe()

    async def memo(self) -> tuple[bytes, str]:
        """What the last controller left here, and the role that it gave."""
        return self._memo, self.role

    async def start(self, start: bytes) -> None:
        """Run a request: a pb Start. Raises Draining, or what the engine refuses it with."""
        if self._draining or self._instance is None:
            raise Draining(f"instance {self.name} takes no new requests: place it elsewhere")
        await asyncio.wrap_future(self._instance.start(start))

    async def cancel(self, request_id: str) -> None:
        """Drop a request; nothing if it is not here."""
        if self._instance is not None:
            await asyncio.wrap_future(self._instance.cancel(request_id))

    async def status(self, generation: int | None = None, memo: bytes = b"") -> bytes:
        """A pb Instance; a controller's beat if it names its generation. Raises Fenced for an older one."""
        self._obey(generation)
        if generation is not None:
            self._memo = memo
            self._heard = time.monotonic()
        return await self._describe()

    async def beat(self) -> bytes:
        """A pb Beat: what the engine is at. Answered by a thread of its own, whatever the others do."""
        return (pb.Beat() if self._instance is None else self._beat(self._instance)).SerializeToString()

    async def move(self, order: bytes) -> bytes:
        """Carry out a pb MoveOrder; gives a pb Migration that says what came of it."""
        asked = pb.MoveOrder.FromString(order)
        to = address_from_wire(asked.to)
        moved = await asyncio.wrap_future(self._serving().move(asked.request_id, to, asked.reason))
        return migration_message(moved).SerializeToString()

    async def take(self, name: str, digest: str = "") -> bytes:
        """Drop a client's requests for another gateway; a pb TakenRequests of what they had."""
        return (await self._serving().take(name, digest)).SerializeToString()

    async def requests(self) -> bytes:
        """A pb RequestList of those that live here."""
        found = await asyncio.wrap_future(self._serving().requests())
        return request_list(found, self.name, self.role).SerializeToString()

    async def exchange(self, counters: bytes) -> bytes:
        """Take in pb Counters, what tenants were served everywhere; gives pb Charges, what was counted."""
        service = dict(pb.Counters.FromString(counters).service)
        news = await asyncio.wrap_future(self._serving().exchange(service))
        return charges_message(news).SerializeToString()

    async def afflict(self, fault: str) -> None:
        """Have what this instance sends to others fail: see migration/faulty.py. `clock=+3600s` among it has
        its wall clock jump, `hang` its next step hang. Raises InvalidParameter."""
        self._serving().afflict(wall_clock.take(fault))

    async def cordon(self, on: bool, generation: int | None = None) -> None:
        """Remember for the next controller that nothing new is to be placed here."""
        self._obey(generation)
        self._cordoned = on

    async def change_role(self, role: str, generation: int | None = None) -> None:
        """Go on in another role; the instance must have been drained. Raises Conflict if it is in use."""
        self._obey(generation)
        instance = self._serving()
        status = await asyncio.wrap_future(instance.status())
        if status.running or status.waiting or status.blocks_reserved:
            raise Conflict(f"{self.name} still has requests: drain it before its role is changed")
        instance.change_role(role)
        self.role, self._draining = role, False

    async def drain(self, generation: int | None = None) -> None:
        """Take no new requests."""
        self._obey(generation)
        self._refuse()

    async def undrain(self, generation: int | None = None) -> None:
        """Take new requests again."""
        self._obey(generation)
        self._draining = False
        self._serving().undrain()

    async def stop(self, generation: int | None = None) -> None:
        """End: requests that are still here are lost, and whoever watches `lifetime` is told."""
        self._obey(generation)
        await self._end("stopped")

    async def lifetime(self, within: float | None = None) -> None:
        """Pends for the instance's whole life, then raises InstanceDied with the reason; or returns after
        `within` seconds."""
        await asyncio.wait([self._ending()], timeout=within)
        if self._ending().done():
            self._ending().result()

    def _serving(self) -> Instance:
        if self._instance is None:
            raise Overloaded(f"instance {self.name} is still loading")
        return self._instance

    def _obey(self, generation: int | None) -> None:
        if generation is None:
            return
        if generation < self._generation:
            raise Fenced(f"a controller of generation {self._generation} has instance {self.name}")
        self._generation = generation

    def _beat(self, instance: Instance) -> pb.Beat:
        present, asked = instance.present(), self._asked_at
        if not present.limit and asked is not None:
            # No step, and yet the engine answers nobody: it is stuck between two steps.
            elapsed, control = time.monotonic() - asked, self._config.control
            present = Present(present.step, 0, elapsed, control.step_floor * control.step_factor)
        return pb.Beat(step=present.step, tokens=present.tokens, elapsed=present.elapsed, limit=present.limit)

    def _refuse(self) -> None:
        self._draining = True
        if self._instance is not None:
            self._instance.drain()

    def _ending(self) -> asyncio.Future[None]:
        if self._over is None:
            self._over = asyncio.get_running_loop().create_future()
            # Nobody may be watching.
            self._over.add_done_callback(lambda over: over.exception())
        return self._over

    async def _load(self) -> Instance:
        instance = await asyncio.to_thread(self._assemble, self._config, self.name, self.role, self._threads)
        await instance.open()
        self._instance = instance
        self._heard = time.monotonic()
        events = asyncio.get_running_loop()
        instance.ended.add_done_callback(lambda ended: events.call_soon_threadsafe(self._engine_ended, ended))
        on_sigterm(lambda: events.call_soon_threadsafe(self._task, self._leave))
        self._task(self._watch)
        return instance

    async def _describe(self) -> bytes:
        assert self._instance is not None
        message = pb.Instance()
        message.CopyFrom(self._instance.description)
        message.name, message.role = self.name, self.role
        message.state = "draining" if self._draining else "ready"
        message.cordoned = self._cordoned
        message.pid, message.node, message.started = os.getpid(), platform.node(), self._started
        message.version, message.settings = self._version, self._settings
        status = status_message(await self._latest(self._instance))
        status.instance, status.role = self.name, self.role
        message.status.CopyFrom(status)
        rate = self._rate.add(status.output_tokens)
        if rate is not None:
            message.tokens_per_second = rate
        message.beat.CopyFrom(self._beat(self._instance))
        return message.SerializeToString()

    async def _latest(self, instance: Instance) -> InstanceStatus:
        """The status between two steps; while a step takes long, the one before it.

        The first is waited for: an instance without blocks would pass for one that is too small.
        """
        asked = self._asked
        if asked is None:
            asked = self._asked = asyncio.wrap_future(instance.status())
            self._asked_at = time.monotonic()
        await asyncio.wait([asked], timeout=None if self._status is None else STATUS_WAIT)
        if asked.done():
            if self._asked is asked:
                self._asked = self._asked_at = None
            if asked.exception() is None:
                self._status = asked.result()
        return asked.result() if self._status is None else self._status

    async def _watch(self) -> None:
        """End when no controller has asked for the status for long: nobody is left to end this instance."""
        limit = self._config.control.orphan_timeout
        while True:
            left = self._heard + limit - time.monotonic()
            if left <= 0:
                break
            await asyncio.sleep(left)
        await self._end(f"no controller has been heard of for {limit:g} s")
        os._exit(0)

    async def _leave(self) -> None:
        """SIGTERM: finish what is here, bounded, then exit."""
        logger.info("%s was told to end and drains", self.name)
        self._refuse()
        assert self._instance is not None
        deadline = time.monotonic() + self._config.control.drain_timeout
        while time.monotonic() < deadline:
            status = await self._latest(self._instance)
            if not (status.running or status.waiting or status.blocks_used or status.blocks_reserved):
                break
            await asyncio.sleep(self._config.control.beat)
        await self._end("ended by SIGTERM")
        os._exit(0)

    def _engine_ended(self, ended: Future[None]) -> None:
        error = ended.exception()
        if error is not None:
            logger.error("the engine loop of %s failed", self.name, exc_info=error)
            self._task(lambda: self._give_up(error))

    async def _give_up(self, error: BaseException) -> None:
        await self._end(f"its engine failed: {type(error).__name__}: {error}")
        os._exit(1)

    async def _end(self, reason: str) -> None:
        """Tell those who watch, and let go of everything outside this process."""
        if self._closing is None:
            self._draining = True
            self._closing = asyncio.create_task(self._close(reason))
        await asyncio.shield(self._closing)

    async def _close(self, reason: str) -> None:
        logger.info("%s ends: %s", self.name, reason)
        try:
            if self._instance is not None:
                async with asyncio.timeout(self._config.control.call_timeout):
                    await self._instance.close()
        except (TimeoutError, TandemError) as error:
            logger.warning("%s did not end cleanly: %s", self.name, error)
        self._ending().set_exception(InstanceDied(f"instance {self.name}: {reason}"))
        await asyncio.sleep(FAREWELL)

    def _task(self, work: Callable[[], Coroutine[Any, Any, None]]) -> None:
        task = asyncio.create_task(work())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
