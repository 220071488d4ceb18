"""What operators may do with instances and requests: cordon, drain, migrate, rebalance, another role.

What takes long goes on by itself when the call has returned: whoever waits looks at the instance's state, and
the events tell how it ended.
"""

from __future__ import annotations

import asyncio
import difflib
import time
from collections.abc import Callable, Coroutine, Mapping
from typing import Any, TypeVar

from cluster import control_pb2 as pb
from cluster.config import Config
from cluster.events import Events
from cluster.member import Member, State
from cluster.migrations import names
from cluster.mover import Mover
from cluster.pool import Authority, Pool
from cluster.rebalance import Rebalancer
from cluster.scaling import Scaling
from cluster.units import counted
from engine.errors import Conflict, InvalidParameter, NotFound, RefusedError, TandemError
from global_scheduler.scheduler import Scheduler

CLOSE = 0.8
"""How alike a name must be to one that there is, of 1, to be taken for a slip."""

T = TypeVar("T")


class Operations:
    """Runs in the controller's event loop, on the controller's pools and members."""

    def __init__(
        self,
        config: Config,
        pools: Mapping[str, Pool],
        members: Mapping[str, Member],
        *,
        mover: Mover,
        scheduler: Scheduler,
        events: Events,
        authority: Callable[[], Authority],
        rebalancer: Rebalancer,
        bounds: Callable[[str], Scaling],
    ) -> None:
        """`bounds` are those that a role's pool has now, whoever set them."""
        self._config = config
        self._pools = pools
        self._members = members
        self._mover = mover
        self._scheduler = scheduler
        self._events = events
        self._authority = authority
        self._rebalancer = rebalancer
        self._bounds = bounds
        self._tasks: set[asyncio.Task[Any]] = set()

    async def requests(self, wanted: str = "") -> pb.RequestList:
        """All requests that run, or those of an id or a client's name."""
        ready = [member for member in self._members.values() if member.state is not State.STARTING]
        found = await self._mover.requests(ready)
        return pb.RequestList(requests=[one for one in found if not wanted or names(one.id, wanted)])

    async def migrate(self, wanted: str, to: str, *, wait: bool = True) -> pb.Migration:
        """Move a request; without `wait` the answer has no outcome yet.

        Raises NotFound, Conflict if the name means several requests, RefusedError for the place.
        """
        destination = self._member(to)
        if destination.state is not State.READY or destination.cordoned:
            raise RefusedError(f"{to} takes no requests: it is {_state(destination)}", param="to")
        found = list((await self.requests(wanted)).requests)
        if not found:
            raise NotFound(f"no request {wanted!r} runs: see `tandem get requests`", param="request")
        if len(found) > 1:
            listed = ", ".join(one.id for one in found)
            raise Conflict(f"{wanted!r} means {len(found)} requests: name one of {listed}", param="request")
        if found[0].instance == to:
            raise RefusedError(f"{found[0].id} runs on {to} already", param="to")
        one = found[0]
        move = self._task(self._mover.move(one, destination, "operator", "asked for by an operator"))
        if wait:
            return await asyncio.shield(move)
        return pb.Migration(request_id=one.id, source=one.instance, destination=to, cause="operator")

    async def rebalance(self, *, dry_run: bool = False) -> pb.RebalanceReply:
        """A round of moves from crowded instances to roomy ones, now; with `dry_run` only its plan."""
        if dry_run:
            return await self._rebalancer.planned()
        return await asyncio.shield(self._task(self._rebalancer.round()))

    async def cordon(self, name: str, *, on: bool) -> pb.Instance:
        """Place nothing more on an instance, or let it take requests again. Raises NotFound, RefusedError."""
        member = self._usable(name)
        if not on and (emptying := member.emptying) is not None:
            emptying.cancel()
            await asyncio.wait([emptying])
            if not emptying.cancelled():
                emptying.result()
        if member.cordoned != on:
            await self._cordon(member, on)
            self._events.add("cordoned" if on else "uncordoned", name, "by request")
        return member.message()

    async def drain(self, name: str, deadline: float) -> pb.Instance:
        """Cordon an instance and begin to move everything away. Raises NotFound, RefusedError."""
        member = self._usable(name)
        if member.emptying is not None:
            raise RefusedError(f"{name} is being drained already", param="instance")
        await self._cordon(member, True)
        self._events.add("draining", name, "by request")
        self._begin(member, self._drain(member, deadline or self._config.control.drain_timeout))
        return member.message()

    async def change_role(self, name: str, role: str, deadline: float) -> pb.Instance:
        """Begin to drain an instance and have it go on in another role; the pools' targets follow.

        Raises NotFound, InvalidParameter, and RefusedError where a pool would leave its bounds.
        """
        if role not in self._pools:
            raise InvalidParameter(f"role: {' or '.join(self._pools)}, not {role!r}", param="role")
        member = self._usable(name)
        source = self._pool_of(member)
        if source.role == role:
            return member.message()
        if member.emptying is not None:
            raise RefusedError(f"{name} is being drained: try again when that is over", param="instance")
        least, most = self._bounds(source.role).least, self._bounds(role).most
        if source.target - 1 < max(1, least):
            raise RefusedError(
                f"{source.role} would have {source.target - 1} instances: scale it up first", param="instance"
            )
        if self._pools[role].target + 1 > most:
            raise RefusedError(
                f"{role} may have {most} instances: raise that with `tandem scale {role} --max` or "
                f"pools.{role}.max_replicas",
                param="role",
            )
        await self._cordon(member, True)
        self._events.add("draining", name, f"to become a {role} instance")
        within = deadline or self._config.control.drain_timeout
        self._begin(member, self._change_role(member, source, self._pools[role], within))
        return member.message()

    async def afflict(self, name: str, fault: str) -> pb.Instance:
        """Have an instance's links fail on purpose. Raises NotFound, RefusedError and InvalidParameter."""
        member = self._usable(name)
        await member.handle.afflict(fault)
        self._events.add("afflicted", name, fault or "its links are sound again")
        return member.message()

    async def close(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _cordon(self, member: Member, on: bool) -> None:
        member.cordoned = on
        self._scheduler.cordon(member.name, on=on)
        await member.handle.cordon(on, self._authority().generation)

    async def _drain(self, member: Member, deadline: float) -> None:
        begun = time.monotonic()
        try:
            async with asyncio.timeout(deadline):
                moved = await self._mover.empty(member, "drain", f"{member.name} is drained")
        except TimeoutError:
            member.emptying = None
            left = counted(member.requests, "request is left and goes", "requests are left and go")
            self._events.add("drain_timeout", member.name, f"after {deadline:g} s {left} on there")
        else:
            member.emptying = None
            took, gone = time.monotonic() - begun, counted(moved, "request was", "requests were")
            self._events.add("drained", member.name, f"after {took:.1f} s, {gone} moved")

    async def _change_role(self, member: Member, source: Pool, target: Pool, deadline: float) -> None:
        begun, generation = time.monotonic(), self._authority().generation
        try:
            async with asyncio.timeout(deadline):
                await self._mover.empty(member, "role", f"{member.name} becomes a {target.role} instance")
                await member.handle.drain(generation)
                await self._until_idle(member)
                await member.handle.change_role(target.role, generation)
        except asyncio.CancelledError:
            if member.state is State.READY:
                self._events.add("role_failed", member.name, f"it stays a {source.role} instance: called off")
                await member.handle.undrain(generation)
                await self._cordon(member, False)
            raise
        except (TimeoutError, TandemError) as error:
            reason = str(error) or f"it still had requests after {deadline:g} s"
            self._events.add("role_failed", member.name, f"it stays a {source.role} instance: {reason}")
            await member.handle.undrain(generation)
        else:
            member.emptying = None
            source.hand_over(member, target)
            took = time.monotonic() - begun
            self._events.add("role", member.name, f"{target.role} now, after {took:.1f} s")
        await self._cordon(member, False)

    async def _until_idle(self, member: Member) -> None:
        while True:
            member.polled.clear()
            await member.polled.wait()
            if member.idle:
                return

    def _begin(self, member: Member, work: Coroutine[Any, Any, None]) -> None:
        task = member.emptying = self._task(work)

        def over(task: asyncio.Task[None]) -> None:
            if member.emptying is task:
                member.emptying = None
            if not task.cancelled() and (error := task.exception()) is not None:
                self._events.add("failed", member.name, str(error) or type(error).__name__)

        task.add_done_callback(over)

    def _task(self, work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    def _usable(self, name: str) -> Member:
        member = self._member(name)
        if member.state is not State.READY:
            raise RefusedError(
                f"{name} is {_state(member)}: nothing can be changed about it", param="instance"
            )
        return member

    def _member(self, name: str) -> Member:
        """Raises NotFound, with the nearest name."""
        member = self._members.get(name)
        if member is None:
            raise NotFound(f"no instance named {name!r}: {self._hint(name)}", param="instance")
        return member

    def _hint(self, name: str) -> str:
        """The nearest name of a slip; another number is another instance, which nobody meant."""
        whole = name.rpartition("-")[0] in self._pools
        near = [] if whole else difflib.get_close_matches(name, self._members, n=1, cutoff=CLOSE)
        return f"did you mean {near[0]}?" if near else "see `tandem get instances`"

    def _pool_of(self, member: Member) -> Pool:
        return next(pool for pool in self._pools.values() if member.name in pool.members)


def _state(member: Member) -> str:
    if member.state is State.READY and member.cordoned:
        return "cordoned"
    return member.message().state
