"""Replaces instances one after the other: each by one that is ready before the old one is drained.

    outdated? ─▶ start a spare ─ ready ─▶ drain the old one by migration ─▶ gone ─▶ the next
                     └─ no room for it ─▶ drain the old one first ─────────┘

What is outdated is found by looking: an instance of another version or of other settings than would be
started now, or one that was marked. So a controller that begins anew goes on where the last one was.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable, Mapping

from cluster.config import ControlConfig
from cluster.events import Events
from cluster.member import Member, State
from cluster.pool import Pool

CAUSE = "restart"

HOPELESS = 2
"""Starts that failed, one after the other, until no instance is waited for any more."""


class Rollout:
    """Runs in the controller's event loop: `run` until it is cancelled. `marked` are names of instances."""

    def __init__(
        self, config: ControlConfig, pools: Mapping[str, Pool], events: Events, *, version: str, settings: str
    ) -> None:
        self.marked: set[str] = set()
        self._config = config
        self._pools = pools
        self._events = events
        self._version = version
        self._settings = settings
        self._futile: set[tuple[str, str]] = set()

    def mark(self, name: str) -> None:
        """Have an instance replaced."""
        self.marked.add(name)

    def outdated(self, member: Member) -> str:
        """Why the instance is to be replaced; '' for one that stays."""
        one = member.instance
        if member.name in self.marked:
            return "a restart was asked for"
        if (one.version, one.settings) in self._futile:
            return ""
        if one.version and one.version != self._version:
            return f"it runs version {one.version}, {self._version} is current"
        if one.settings and one.settings != self._settings:
            return "it was started with other settings"
        return ""

    async def run(self) -> None:
        """Look with each beat, and replace one instance at a time."""
        while True:
            found = self._next()
            if found is None:
                await asyncio.sleep(self._config.beat)
            else:
                await self._replace(*found)

    def _next(self) -> tuple[Pool, Member, str] | None:
        names = {name for pool in self._pools.values() for name in pool.members}
        self.marked &= names
        for pool in self._pools.values():
            ready = [member for member in pool.members.values() if member.state is State.READY]
            for member in sorted(ready, key=lambda member: member.started):
                if reason := self.outdated(member):
                    return pool, member, reason
        return None

    async def _replace(self, pool: Pool, member: Member, reason: str) -> None:
        begun, before = time.monotonic(), set(pool.members)
        self._events.add("replacing", member.name, reason)
        spare = await self._spare(pool, before)
        pool.drain(member, reason, CAUSE)
        limit = self._config.drain_timeout + 2 * self._config.call_timeout
        await self._until(lambda: member.name not in pool.members, limit)
        if spare is None:
            spare = await self._successor(pool, before)
        self.marked.discard(member.name)
        if spare is None:
            self._events.add("unreplaced", member.name, "no other instance became ready in its place")
        else:
            took = time.monotonic() - begun
            self._events.add("replaced", member.name, f"by {spare.name}, after {took:.1f} s")
            self._judge(spare)

    async def _spare(self, pool: Pool, before: set[str]) -> Member | None:
        """One more instance than the target; None where the config wants none or there is no room for it."""
        if not self._config.surge:
            return None
        pool.surge = self._config.surge
        try:
            pool.kick()
            spare = await self._successor(pool, before)
        finally:
            pool.surge = 0
        if spare is None:
            self._events.add("no_spare", pool.role, "a spare instance did not start: the old one goes first")
        return spare

    async def _successor(self, pool: Pool, before: set[str]) -> Member | None:
        """An instance that was started since and is ready, waited for."""

        def ready() -> list[Member]:
            new = [member for name, member in pool.members.items() if name not in before]
            return [member for member in new if member.state is State.READY]

        hopeless = pool.failures + HOPELESS
        await self._until(lambda: bool(ready()) or pool.failures >= hopeless, self._config.start_timeout)
        return next(iter(ready()), None)

    async def _until(self, condition: Callable[[], bool], seconds: float) -> None:
        for _ in range(math.ceil(seconds / self._config.beat)):
            if condition():
                return
            await asyncio.sleep(self._config.beat)

    def _judge(self, spare: Member) -> None:
        """Without this a node that has an old version only would have its instances replaced for ever."""
        if reason := self.outdated(spare):
            self._futile.add((spare.instance.version, spare.instance.settings))
            text = f"{reason}, though it was started just now: no more of these are replaced"
            self._events.add("rollout_stopped", spare.name, text)
