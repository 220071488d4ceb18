"""Carries out moves: one request to one instance, or everything away from an instance.

move   source.move(order) ─▶ what came of it ─▶ the log of migrations
empty  requests of the source, oldest first ─▶ the freest instance of their role ─▶ move, a few at a time
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Iterable, Mapping

from cluster import control_pb2 as pb
from cluster.config import Config
from cluster.member import Member, State
from cluster.migrations import Migrations
from engine.errors import InstanceDied, TandemError
from global_scheduler.placement import DECODE
from global_scheduler.refuge import refuge
from global_scheduler.scheduler import Scheduler
from global_scheduler.view import Share
from migration.moved import COMMITTED

TRIES = 3
"""Moves of one request away from one instance before it is left to finish there."""

QUIET = 2
"""Looks, a beat apart, that must find nothing until an instance counts as empty."""

ABORTED = "aborted"


class Mover:
    """Runs in the controller's event loop. `members` are all instances by name, whatever their pool."""

    def __init__(
        self,
        config: Config,
        scheduler: Scheduler,
        migrations: Migrations,
        members: Mapping[str, Member],
    ) -> None:
        self.migrations = migrations
        self._config = config.control
        self._most = config.transfer.max_moves
        self._scheduler = scheduler
        self._members = members

    async def requests(self, members: Iterable[Member]) -> list[pb.RunningRequest]:
        """What runs on these instances; those that do not answer have nothing to tell."""
        answers = await asyncio.gather(*map(_requests, members), return_exceptions=True)
        return [one for answer in answers if not isinstance(answer, BaseException) for one in answer]

    async def move(
        self, request: pb.RunningRequest, destination: Member, cause: str, reason: str
    ) -> pb.Migration:
        """Send a request from where it runs to another instance; a move that was aborted is no error."""
        begun = time.monotonic()
        tokens = request.prompt_tokens + request.output_tokens
        self._scheduler.send(request.id, {destination.name: Share(0, tokens)}, begun)
        order = pb.MoveOrder(request_id=request.id, to=destination.instance.address, reason=reason)
        try:
            source = self._members[request.instance]
            answer = await source.handle.move(order.SerializeToString(), self._config.drain_timeout)
            migration = pb.Migration.FromString(answer)
        except (TandemError, KeyError) as error:
            migration = pb.Migration(
                request_id=request.id,
                source=request.instance,
                destination=destination.name,
                reason=reason,
                outcome=ABORTED,
                detail=str(error),
                seconds=time.monotonic() - begun,
            )
        migration.cause = cause
        return self.migrations.add(migration)

    async def empty(self, source: Member, cause: str, reason: str) -> int:
        """Move everything away; returns when nothing is left there, with the number of requests that moved.

        What cannot be moved is left to finish. Cancelled, it begins no further move.
        """
        tries: Counter[str] = Counter()
        moving: dict[str, asyncio.Task[pb.Migration]] = {}
        moved = quiet = 0
        try:
            while True:
                try:
                    requests = await _requests(source)
                except InstanceDied:
                    return moved
                except TandemError:
                    requests, quiet = [], 0
                # What was on its way here when the cordon came may arrive a moment after.
                quiet = 0 if requests or moving or not source.idle else quiet + 1
                if quiet > QUIET:
                    return moved
                for request in sorted(requests, key=lambda one: -one.age):
                    if len(moving) >= self._most:
                        break
                    if request.moving or request.id in moving or tries[request.id] >= TRIES:
                        continue
                    destination = self._refuge(request)
                    if destination is not None:
                        tries[request.id] += 1
                        moving[request.id] = asyncio.create_task(
                            self.move(request, destination, cause, reason)
                        )
                await _first(moving.values(), self._config.beat)
                for request_id in [key for key, task in moving.items() if task.done()]:
                    moved += moving.pop(request_id).result().outcome == COMMITTED
        finally:
            for task in moving.values():
                task.cancel()
            await asyncio.gather(*moving.values(), return_exceptions=True)

    def _refuge(self, request: pb.RunningRequest) -> Member | None:
        """Who takes a request in: a decode instance what decodes, else one of the role of its own."""
        role = DECODE if request.phase == "decode" else request.role
        tokens = request.prompt_tokens + request.output_tokens
        there = refuge(self._scheduler.view.loads(time.monotonic()), request.instance, role, tokens)
        found = None if there is None else self._members.get(there.instance)
        return found if found is not None and found.state is State.READY and not found.cordoned else None


async def _requests(member: Member) -> list[pb.RunningRequest]:
    return list(pb.RequestList.FromString(await member.handle.requests()).requests)


async def _first(tasks: Iterable[asyncio.Task[pb.Migration]], seconds: float) -> None:
    """Until one of the tasks is done, for so long at most."""
    waiting = list(tasks)
    if waiting:
        await asyncio.wait(waiting, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
    else:
        await asyncio.sleep(seconds)
