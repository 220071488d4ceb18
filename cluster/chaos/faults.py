"""Does to a cluster what a scenario says: kills, stops, cuts links, fills disks, moves requests, restarts."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass

import psutil

from cluster import control_pb2 as pb
from cluster.chaos import victims
from cluster.chaos.changes import CHANGES, change
from cluster.chaos.scenario import Fault
from cluster.chaos.victims import CONTROLLER, GATEWAY, Victim
from cluster.control_client import ControlClient
from engine.errors import TandemError

SETTLED = 120.0
"""Seconds that one step of a rolling restart may take."""
POLL = 0.1


@dataclass(frozen=True, slots=True)
class Done:
    """A fault that was carried out, or why it was not. `time` is on the monotonic clock; `role` the kind of
    process that the victim was, "" where there was none."""

    time: float
    kind: str
    victim: str
    error: str = ""
    role: str = ""


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
        """The whole schedule, from now."""
        await asyncio.gather(*map(self._schedule, faults))

    async def _schedule(self, fault: Fault) -> None:
        await asyncio.sleep(fault.at)
        for number in range(fault.count if fault.every else 1):
            if number:
                await asyncio.sleep(fault.every)
            if fault.settled:
                async with self._turn:
                    await self._whole(fault)
                    await asyncio.sleep(self._rng.uniform(0, fault.spread))
                    await self._inject(fault)
            else:
                await asyncio.sleep(self._rng.uniform(0, fault.spread))
                await self._inject(fault)

    async def _inject(self, fault: Fault) -> None:
        victim = Victim(fault.target, "", 0, "")
        try:
            status = await asyncio.to_thread(self._control.status)
            if fault.kind not in CHANGES:
                victim = victims.pick(fault.target, status, self._rng)
            self._say(f"{fault.kind} {victim.name}")
            self.done.append(Done(time.monotonic(), fault.kind, victim.name, role=victim.kind))
            await self._carry_out(fault, victim, status)
        except (TandemError, OSError, LookupError, TimeoutError, psutil.Error) as error:
            self.done.append(Done(time.monotonic(), fault.kind, victim.name, str(error)))
            self._say(f"{fault.kind} {victim.name} failed: {error}")

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
            case "disk":
                await victims.fill_disk(victim.pid, fault.lasting)
            case "memory":
                await victims.take_memory(fault.size, fault.lasting)
            case "migrate":
                await asyncio.to_thread(self._migrate, victim.name)
            case "drain":
                await asyncio.to_thread(self._control.drain, victim.name)
                await self._until(victim.name, lambda one: one.state != "draining")
                await asyncio.to_thread(self._control.cordon, victim.name, on=False)
            case "role":
                await self._there_and_back(victim.name)
            case "rolling_restart":
                await self._restart_all()
            case _:
                await change(self._control, fault)

    async def _afflict(self, victim: Victim, fault: str, seconds: float) -> None:
        """Something is wrong with an instance's links, or its clock, for a while."""
        if victim.kind in (CONTROLLER, GATEWAY):
            raise LookupError(f"links and clocks are those of instances, not of a {victim.kind}")
        await asyncio.to_thread(self._control.afflict, victim.name, fault)
        try:
            await asyncio.sleep(seconds)
        finally:
            with contextlib.suppress(TandemError):  # it may have died meanwhile
                await asyncio.to_thread(self._control.afflict, victim.name, "")

    def _migrate(self, victim: str) -> None:
        """Move one running request of the victim to another instance of its role."""
        status = self._control.status()
        role = _role(victim, status)
        others = [
            one.name for one in status.instances
            if one.role == role and one.name != victim and one.state == "ready" and not one.cordoned
        ]  # fmt: skip
        running = [
            one for one in self._control.requests() if one.instance == victim and one.phase == "decode"
        ]
        if others and running:
            self._control.migrate(self._rng.choice(running).id, self._rng.choice(others), wait=False)

    async def _there_and_back(self, victim: str) -> None:
        status = await asyncio.to_thread(self._control.status)
        role = _role(victim, status)
        other = "prefill" if role == "decode" else "decode"
        for to in (other, role):
            await asyncio.to_thread(self._control.change_role, victim, to)
            await self._until(victim, lambda one: one.state != "draining")

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
                    if gone and all(pool.ready == pool.target for pool in now.pools):
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
                if pools and self._served(status):
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
            if not found or good(found[0]):
                return
            await asyncio.sleep(POLL)
        raise TimeoutError(f"{name} did not settle in {SETTLED:g} s")


def _role(name: str, status: pb.ClusterStatus) -> str:
    """Raises LookupError if the instance is gone. (A StopIteration would never come out of a thread.)"""
    found = [one.role for one in status.instances if one.name == name]
    if not found:
        raise LookupError(f"{name} is gone")
    return found[0]
