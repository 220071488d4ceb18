"""Does to a cluster what a scenario says: kills, stops, cuts links, fills disks, moves requests, restarts."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

import psutil

from cluster import control_pb2 as pb
from cluster.chaos import victims
from cluster.chaos.changes import CHANGES, change
from cluster.chaos.scenario import Fault
from cluster.chaos.threads import to_its_end
from cluster.chaos.victims import CONTROLLER, GATEWAY, Victim
from cluster.control_client import ControlClient
from cluster.step_watch import HANG
from engine.errors import Conflict, InstanceDied, NotFound, RefusedError, TandemError, Unreachable

SETTLED = 120.0
"""Seconds that one step of a rolling restart may take."""
POLL = 0.1
AIM = 30.0
"""Seconds in which a victim must be found: another fault may have hit the controller or all of a kind."""
BUSY = 2.0
"""Seconds in which what is to be killed must have a request; then one that has none has to do."""
MOVABLE = 2.0
"""Seconds in which there must be a request to move: a load has just begun, or a pool is not whole."""
STEPS = ("migrate", "drain", "role", "rolling_restart", *CHANGES)
"""Faults that have been carried out when their last step has; the others have as soon as they begin."""


class Missed(Exception):
    """There was nothing to do just then, which says nothing against the cluster or the scenario."""


@dataclass(frozen=True, slots=True)
class Done:
    """A fault that was begun, at `time` on the monotonic clock, or why it was not.

    `error` says why it could not be carried out, `missed` why there was nothing to do or no time to do all of
    it; both are "" for one that was carried out. `role` is the kind of process that the victim was, "" where
    there was none, `target` what the scenario called it, and `fault` the place that it has in the scenario.
    """

    time: float
    kind: str
    victim: str
    error: str = ""
    role: str = ""
    target: str = ""
    missed: str = ""
    fault: int = 0

    @property
    def carried_out(self) -> bool:
        return not self.error and not self.missed


class Injector:
    """Carries out faults; `done` has them in order."""

    def __init__(self, control: ControlClient, seed: int, say: Callable[[str], None]) -> None:
        self.done: list[Done] = []
        self._control = control
        self._rng = random.Random(seed)
        self._turn = asyncio.Lock()
        self._gateways = 0
        self._say = say

    async def run(self, faults: tuple[Fault, ...]) -> None:
        """The whole schedule, from now. Cancelled, it is over when what has to be undone is."""
        async with asyncio.TaskGroup() as group:
            for number, fault in enumerate(faults):
                group.create_task(self._schedule(number, fault))

    async def _schedule(self, number: int, fault: Fault) -> None:
        await asyncio.sleep(fault.at)
        for turn in range(fault.count if fault.every else 1):
            if turn:
                await asyncio.sleep(fault.every)
            if fault.settled:
                async with self._turn:
                    await self._whole(fault)
                    await asyncio.sleep(self._rng.uniform(0, fault.spread))
                    await self._inject(number, fault)
            else:
                await asyncio.sleep(self._rng.uniform(0, fault.spread))
                await self._inject(number, fault)

    async def _inject(self, number: int, fault: Fault) -> None:
        try:
            victim, status = await self._aim(fault)
        except (TandemError, LookupError) as error:
            self._end(self._begin(number, fault, Victim(fault.target, "", 0, "")), error=str(error))
            return
        place = self._begin(number, fault, victim)
        try:
            await self._carry_out(fault, victim, status)
        except asyncio.CancelledError:
            if fault.kind in STEPS:
                self._end(place, missed="the load ended before")
            raise
        except (Missed, InstanceDied, ProcessLookupError, psutil.NoSuchProcess) as missed:
            self._end(place, missed=str(missed))
        except Exception as error:  # whatever it is, the run goes on, and its verdict says what was not done
            named = "" if isinstance(error, TandemError | OSError | LookupError) else type(error).__name__
            told = ": ".join(part for part in (named, str(error)) if part)
            self._end(place, error=told or type(error).__name__)
        task = asyncio.current_task()
        if task is not None and task.cancelling():  # and what undoes the fault failed
            raise asyncio.CancelledError

    def _begin(self, number: int, fault: Fault, victim: Victim) -> int:
        """Gives its place in `done`."""
        self._say(f"{fault.kind} {victim.name}")
        self.done.append(
            Done(
                time.monotonic(),
                fault.kind,
                victim.name,
                role=victim.kind,
                target=fault.target,
                fault=number,
            )
        )
        return len(self.done) - 1

    def _end(self, place: int, *, error: str = "", missed: str = "") -> None:
        """For a fault that was not carried out: why."""
        done = self.done[place] = replace(self.done[place], error=error, missed=missed)
        self._say(f"{done.kind} {done.victim} {'failed' if error else 'missed'}: {error or missed}")

    async def _aim(self, fault: Fault) -> tuple[Victim, pb.ClusterStatus]:
        """Raises TandemError or LookupError if there is no victim for AIM seconds."""
        begun = time.monotonic()
        while True:
            try:
                status = await asyncio.to_thread(self._control.status)
                if fault.kind in CHANGES:
                    return Victim(fault.target, "", 0, ""), status
                victim = victims.pick(fault.target, status, self._rng, _spared(fault))
                if time.monotonic() > begun + BUSY or victims.worth(fault.kind, victim, status):
                    return victim, status
            except (TandemError, LookupError):
                if time.monotonic() > begun + AIM:
                    raise
            await asyncio.sleep(POLL)

    async def _carry_out(self, fault: Fault, victim: Victim, status: pb.ClusterStatus) -> None:
        match fault.kind:
            case "kill":
                os.kill(victim.pid, signal.SIGKILL)
            case "kill_node":
                victims.kill_node(victim, status)
            case "terminate":
                os.kill(victim.pid, signal.SIGTERM)
            case "stop":
                await victims.stop(victim.pid, fault.lasting)
            case "link":
                await self._afflict(victim, fault.link, fault.lasting)
            case "clock":
                await self._afflict(victim, f"clock=+{fault.jump:g}s", fault.lasting)
            case "hang":
                await self._afflict(victim, HANG, fault.lasting)
            case "disk":
                await victims.fill_disk(victim.pid, fault.lasting)
            case "memory":
                await victims.take_memory(fault.size, fault.lasting)
            case "migrate":
                await self._migrate(victim.name)
            case "drain":
                await self._out_and_in(victim.name)
            case "role":
                await self._there_and_back(victim.name)
            case "rolling_restart":
                await self._restart_all()
            case _:
                await change(self._control, fault)

    async def _afflict(self, victim: Victim, fault: str, seconds: float) -> None:
        """Something is wrong with an instance's links, its clock, or its next step, for a while."""
        if victim.kind in (CONTROLLER, GATEWAY):
            raise LookupError(f"links, clocks and steps are those of instances, not of a {victim.kind}")
        try:
            await to_its_end(self._control.afflict, victim.name, fault)
            await asyncio.sleep(seconds)
        finally:
            with contextlib.suppress(TandemError):  # it may have died meanwhile
                await to_its_end(self._control.afflict, victim.name, "")

    async def _migrate(self, victim: str) -> None:
        """Move one running request of the victim to another instance of its role, as soon as there is one.

        Raises Missed if there is none for MOVABLE seconds, or none that lasts until it is moved.
        """
        end = time.monotonic() + MOVABLE
        while True:
            try:
                return await asyncio.to_thread(self._move_one, victim)
            except (NotFound, Conflict, RefusedError, Unreachable, LookupError) as error:
                if time.monotonic() > end:
                    raise Missed(str(error)) from error
            await asyncio.sleep(POLL)

    def _move_one(self, victim: str) -> None:
        """Raises LookupError if there is none now, TandemError if the controller refuses or is away."""
        status = self._control.status()
        role = _role(victim, status)
        others = [
            one.name for one in status.instances
            if one.role == role and one.name != victim and one.state == "ready" and not one.cordoned
        ]  # fmt: skip
        running = [
            one for one in self._control.requests() if one.instance == victim and one.phase == "decode"
        ]
        if not others:
            raise LookupError(f"no other {role} instance is ready")
        if not running:
            raise LookupError(f"no request decodes on {victim}")
        self._control.migrate(self._rng.choice(running).id, self._rng.choice(others), wait=False)

    async def _out_and_in(self, victim: str) -> None:
        mine = True
        try:
            await to_its_end(self._control.drain, victim)
            await self._until(victim, _settled)
        except (RefusedError, NotFound):  # another drains it, who takes it back
            mine = False
            raise
        finally:
            if mine:
                await to_its_end(self._control.cordon, victim, on=False)

    async def _there_and_back(self, victim: str) -> None:
        status = await asyncio.to_thread(self._control.status)
        role = _role(victim, status)
        try:
            await self._turn_into("prefill" if role == "decode" else "decode", victim)
        finally:
            # On its way to the other role it still has this one, and would be left on its way.
            await self._until(victim, _settled)
            await self._turn_into(role, victim)

    async def _turn_into(self, role: str, victim: str) -> None:
        """Raises TimeoutError if it does not, RefusedError if it must not."""
        await to_its_end(self._control.change_role, victim, role)
        await self._until(victim, lambda one: _settled(one) and one.role == role)

    async def _restart_all(self) -> None:
        """SIGTERM to one instance after the other: each drains, ends, and is replaced before the next."""
        status = await asyncio.to_thread(self._control.status)
        for one in list(status.instances):
            self._say(f"terminate {one.name}")
            os.kill(one.pid, signal.SIGTERM)
            end = time.monotonic() + SETTLED
            while True:
                await asyncio.sleep(POLL)
                with contextlib.suppress(TandemError):
                    now = await asyncio.to_thread(self._control.status)
                    gone = one.name not in {each.name for each in now.instances}
                    if now.pools and gone and all(pool.ready == pool.target for pool in now.pools):
                        break
                if time.monotonic() > end:
                    raise TimeoutError(f"{one.name} was not replaced in {SETTLED:g} s")

    async def _whole(self, fault: Fault) -> None:
        """Both pools have all their instances, there are as many gateways as there ever were, and there is a
        victim; or that takes too long.
        """
        end = time.monotonic() + SETTLED
        while time.monotonic() < end:
            with contextlib.suppress(TandemError, LookupError):
                status = await asyncio.to_thread(self._control.status)
                pools = all(pool.ready == pool.target and not pool.draining for pool in status.pools)
                if status.pools and pools and self._served(status):
                    if fault.kind not in CHANGES:
                        victims.pick(fault.target, status, random.Random(0))
                    return
            await asyncio.sleep(POLL)

    def _served(self, status: pb.ClusterStatus) -> bool:
        """Whether all gateways are there; the controller lists one that was killed for a while yet."""
        killed = {one.victim for one in self.done if one.kind == "kill"}
        alive = sum(one.name not in killed for one in status.gateways)
        self._gateways = max(self._gateways, alive)
        return alive >= self._gateways

    async def _until(self, name: str, good: Callable[[pb.Instance], bool]) -> None:
        end = time.monotonic() + SETTLED
        while time.monotonic() < end:
            status = await asyncio.to_thread(self._control.status)
            found = [one for one in status.instances if one.name == name]
            # A controller that has just begun knows nobody yet.
            if status.pools and (not found or good(found[0])):
                return
            await asyncio.sleep(POLL)
        raise TimeoutError(f"{name} did not settle in {SETTLED:g} s")


def _spared(fault: Fault) -> Callable[[Victim], bool]:
    """Ray's head node must not be killed: with it the whole cluster would end."""

    def spared(victim: Victim) -> bool:
        with contextlib.suppress(LookupError):
            return fault.kind == "kill_node" and victims.on_head(victim)
        return False

    return spared


def _settled(one: pb.Instance) -> bool:
    """Whether an instance is not being emptied."""
    return one.state != "draining"


def _role(name: str, status: pb.ClusterStatus) -> str:
    """Raises LookupError if the instance is gone. (A StopIteration would never come out of a thread.)"""
    found = [one.role for one in status.instances if one.name == name]
    if not found:
        raise LookupError(f"{name} is gone")
    return found[0]
