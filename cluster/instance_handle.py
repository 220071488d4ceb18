"""A handle on an instance: the only place that calls a Ray actor.

Instances are detached named actors in the namespace "tandem", so that whoever knows a name reaches it, and a
controller that was started again finds them. They are never restarted by Ray: that takes seconds, and our own
supervisor knows better.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable
from functools import partial
from typing import TYPE_CHECKING, Any

import ray
from ray.actor import ActorHandle
from ray.exceptions import ActorUnavailableError, GetTimeoutError, RayActorError, RayError, RayTaskError

from engine.errors import Fenced, InstanceDied, Overloaded, TandemError

if TYPE_CHECKING:  # a second of imports
    from ray.serve.handle import DeploymentHandle

Create = Callable[[], ActorHandle[Any]]

NAMESPACE = "tandem"
NAME = re.compile(r"(prefill|decode)-\d+")
BEATS = "beats"
"""The concurrency group of beats: Ray answers its calls in a thread of their own."""

MAX_BEATS = 16

WATCH = 60.0
"""Seconds that one call of `lifetime` pends: Ray keeps the connection of a caller that has died, and so an
open socket, until its calls are answered."""

MAX_CONCURRENCY = 10_000
"""Calls that may be pending at one instance: a `lifetime` per gateway, and the starts of a moment."""


class InstanceHandle:
    """Async methods of the worker's names. All are bounded by `timeout` seconds, but `ready` and `lifetime`.

    They raise InstanceDied when there is no such instance any more, Overloaded when it does not answer in
    time, and the TandemErrors that the worker raised, as they were.
    """

    def __init__(self, name: str, *, timeout: float = 5.0, create: Create | None = None) -> None:
        """With `create` the actor is started by the first call, in a thread: that takes Ray a while."""
        self.name = name
        self._timeout = timeout
        self._create = create
        self._actor: ActorHandle[Any] | None = None
        self._door = asyncio.Lock()

    async def ready(self, within: float) -> bytes:
        """Wait until the instance has loaded its model. Gives a pb Instance."""
        return bytes(await self._call("ready", within=within))

    async def load(self, within: float) -> None:
        """Have it begin to load its model; returns when its process is there."""
        await self._call("load", within=within)

    async def memo(self) -> tuple[bytes, str]:
        """What the last controller left there, and the instance's role."""
        memo, role = await self._call("memo")
        return bytes(memo), str(role)

    async def start(self, start: bytes) -> None:
        """Run a request: a pb Start. Raises what the engine refuses it with."""
        await self._call("start", start)

    async def cancel(self, request_id: str) -> None:
        """Drop a request; no error if the instance does not know it."""
        await self._call("cancel", request_id)

    async def status(self, generation: int | None = None, memo: bytes = b"") -> bytes:
        """A pb Instance. A controller names its generation, which takes the instance over, and leaves a memo.

        Raises Fenced if a controller of a newer generation has the instance.
        """
        return bytes(await self._call("status", generation, memo))

    async def beat(self) -> bytes:
        """A pb Beat, from a thread that only answers this. Not bounded: a hung process never answers."""
        return bytes(await self._call("beat", within=None, group=BEATS))

    async def move(self, order: bytes, within: float) -> bytes:
        """Carry out a pb MoveOrder; gives a pb Migration, of a move that was aborted too."""
        return bytes(await self._call("move", order, within=within))

    async def take(self, name: str, digest: str) -> bytes:
        """Have it drop a client's requests, as `same_question`; gives a pb TakenRequests of what they had."""
        return bytes(await self._call("take", name, digest))

    async def requests(self) -> bytes:
        """A pb RequestList of the requests that live there."""
        return bytes(await self._call("requests"))

    async def exchange(self, counters: bytes) -> bytes:
        """Tell it pb Counters, what tenants were served everywhere; gives pb Charges, what it has counted."""
        return bytes(await self._call("exchange", counters))

    async def afflict(self, fault: str) -> None:
        """Have its links fail on purpose. Raises InvalidParameter for what is no fault."""
        await self._call("afflict", fault)

    async def cordon(self, on: bool, generation: int | None = None) -> None:
        """Have it remember that nothing new is to be placed there. Raises Fenced as `status` does."""
        await self._call("cordon", on, generation)

    async def change_role(self, role: str, generation: int | None = None) -> None:
        """Go on in another role. Raises Conflict while it has requests, Fenced as `status` does."""
        await self._call("change_role", role, generation)

    async def drain(self, generation: int | None = None) -> None:
        """Take no new requests; those that run go on. Raises Fenced as `status` does."""
        await self._call("drain", generation)

    async def undrain(self, generation: int | None = None) -> None:
        """Take new requests again. Raises Fenced as `status` does."""
        await self._call("undrain", generation)

    async def stop(self, generation: int | None = None) -> None:
        """End the instance, cleanly if it answers. Raises Fenced as `status` does."""
        try:
            await self._call("stop", generation)
        except Fenced:
            raise
        except TandemError:
            pass
        await self.kill()

    async def kill(self) -> None:
        """End the process at once, or never start it."""
        self._create = None
        try:
            actor = await self._get()
        except TandemError:
            return
        await asyncio.to_thread(ray.kill, actor, no_restart=True)

    async def lifetime(self) -> None:
        """Never returns; raises InstanceDied within milliseconds of the instance's death."""
        try:
            while True:
                await self._call("lifetime", WATCH, within=None)
        except TypeError:  # an instance of a version whose calls had no bound
            await self._call("lifetime", within=None)

    async def _get(self) -> ActorHandle[Any]:
        async with self._door:
            if self._actor is None:
                create = self._create or partial(ray.get_actor, self.name, namespace=NAMESPACE)
                try:
                    self._actor = await asyncio.to_thread(create)
                except (RayError, ValueError) as error:
                    if self._create is None:
                        raise InstanceDied(f"instance {self.name} is gone") from None
                    raise TandemError(f"Ray cannot start {self.name}: {_first_line(error)}") from error
            return self._actor

    async def _call(
        self, method: str, *args: Any, within: float | None = -1.0, group: str | None = None
    ) -> Any:
        actor = await self._get()
        call = getattr(actor, method)
        answer: Awaitable[Any] = (call if group is None else call.options(concurrency_group=group)).remote(
            *args
        )
        try:
            async with asyncio.timeout(self._timeout if within == -1.0 else within):
                return await answer
        except (TimeoutError, GetTimeoutError):
            raise Overloaded(f"instance {self.name} did not answer {method} in time") from None
        except RayTaskError as error:
            cause = error.cause
            if isinstance(cause, TandemError):
                raise type(cause)(cause.message, param=cause.param) from None
            raise TandemError(f"instance {self.name} failed in {method}: {cause}") from error
        except ActorUnavailableError as error:
            raise Overloaded(f"instance {self.name} cannot be reached for {method}: {error}") from None
        except RayActorError as error:
            raise InstanceDied(f"instance {self.name} died: {_why_dead(error)}") from None
        except RayError as error:
            raise TandemError(f"instance {self.name} failed in {method}: {_first_line(error)}") from error


def spawn(
    worker: type, name: str, *args: Any, resources: dict[str, float], timeout: float = 5.0
) -> InstanceHandle:
    """A worker that becomes the actor `name` with the first call; `ready` waits until it serves.

    `resources` are Ray's: CPU and GPU by those names, custom ones by theirs.
    """
    custom = {key: value for key, value in resources.items() if key not in ("CPU", "GPU", "memory")}
    options = {
        "name": name,
        "namespace": NAMESPACE,
        "lifetime": "detached",
        "max_restarts": 0,
        "max_task_retries": 0,
        "max_concurrency": MAX_CONCURRENCY,
        # Ray would keep an event of each call, a beat being one: 10 MiB a minute in its own server.
        "enable_task_events": False,
        "num_cpus": resources.get("CPU", 0),
        "num_gpus": resources.get("GPU", 0),
        "resources": custom,
    }
    if "memory" in resources:
        options["memory"] = resources["memory"]

    def create() -> ActorHandle[Any]:
        remote: Any = ray.remote(concurrency_groups={BEATS: MAX_BEATS})  # type: ignore[call-overload]
        actor: ActorHandle[Any] = remote(worker).options(**options).remote(*args)
        return actor

    return InstanceHandle(name, timeout=timeout, create=create)


def existing() -> list[str]:
    """The names of all live instances of this Ray cluster, whoever started them."""
    actors = ray.util.list_named_actors(all_namespaces=True)
    names = (actor["name"] for actor in actors if actor["namespace"] == NAMESPACE)
    return sorted(name for name in names if NAME.fullmatch(name))


async def end_all(within: float) -> list[str]:
    """End every instance of this Ray cluster, each `within` so many seconds; gives their names."""
    names = await asyncio.to_thread(existing)
    await asyncio.gather(
        *(InstanceHandle(name, timeout=within).stop() for name in names), return_exceptions=True
    )
    return names


async def address_of(controller: DeploymentHandle[Any]) -> str:
    """host:port of the controller's gRPC services; Serve may start the controller again elsewhere."""
    address: str = await controller.address.remote()
    return address


def _why_dead(error: RayActorError) -> str:
    """Ray's reason without its list of ids; what killed a process it cannot know."""
    found = re.search(r"because (it was killed by `ray\.kill`|.+?\.)(\s|$)", str(error))
    return found[1].rstrip(".") if found else _first_line(error)


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0]
