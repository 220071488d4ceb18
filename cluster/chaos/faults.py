"""Does to a cluster what a scenario says: kills, stops, cuts links, takes memory, moves requests, restarts.

Processes are ended by their ids, so the runner must be on the machine of the victim, and its user's.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import platform
import random
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass

from cluster import control_pb2 as pb
from cluster.chaos.scenario import Fault
from cluster.control_client import ControlClient
from engine.errors import TandemError

SETTLED = 120.0
"""Seconds that one step of a rolling restart may take."""
POLL = 0.1


@dataclass(frozen=True, slots=True)
class Done:
    """A fault that was carried out, or why it was not. `time` is on the monotonic clock."""

    time: float
    kind: str
    victim: str
    error: str = ""


class Injector:
    """Carries out faults; `done` has them in order."""

    def __init__(self, control: ControlClient, seed: int, say: Callable[[str], None]) -> None:
        self.done: list[Done] = []
        self._control = control
        self._rng = random.Random(seed)
        self._turn = asyncio.Lock()
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
                    await self._whole()
                    await self._inject(fault)
            else:
                await self._inject(fault)

    async def _inject(self, fault: Fault) -> None:
        victim = fault.target
        try:
            status = await asyncio.to_thread(self._control.status)
            victim, pid = self._victim(fault.target, status)
            self._say(f"{fault.kind} {victim}")
            self.done.append(Done(time.monotonic(), fault.kind, victim))
            await self._carry_out(fault, victim, pid)
        except (TandemError, OSError, LookupError, TimeoutError) as error:
            self.done.append(Done(time.monotonic(), fault.kind, victim, str(error)))
            self._say(f"{fault.kind} {victim} failed: {error}")

    def _victim(self, target: str, status: pb.ClusterStatus) -> tuple[str, int]:
        """Name and process. Raises LookupError if there is none, or it is on another machine."""
        if target == "controller":
            found = [("controller", status.controller_pid, status.controller_node)]
        elif target == "gateway":
            found = [(one.name, one.pid, one.node) for one in status.gateways]
        else:
            ready = [one for one in status.instances if one.state == "ready" and not one.cordoned]
            found = [
                (one.name, one.pid, one.node) for one in ready if target in ("instance", one.role, one.name)
            ]
        if not found:
            raise LookupError(f"there is no {target} that could be hit")
        name, pid, node = self._rng.choice(found)
        if node != platform.node():
            raise LookupError(f"{name} is on {node}: run the scenario there")
        return name, pid

    async def _carry_out(self, fault: Fault, victim: str, pid: int) -> None:
        match fault.kind:
            case "kill":
                os.kill(pid, signal.SIGKILL)
            case "terminate":
                os.kill(pid, signal.SIGTERM)
            case "stop":
                os.kill(pid, signal.SIGSTOP)
                await asyncio.sleep(fault.lasting)
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGCONT)
            case "link":
                await asyncio.to_thread(self._control.afflict, victim, fault.link)
                await asyncio.sleep(fault.lasting)
                await asyncio.to_thread(self._control.afflict, victim, "")
            case "memory":
                ballast = bytearray(fault.size)
                ballast[::4096] = b"\1" * len(ballast[::4096])
                await asyncio.sleep(fault.lasting)
                del ballast
            case "migrate":
                await asyncio.to_thread(self._migrate, victim)
            case "drain":
                await asyncio.to_thread(self._control.drain, victim)
                await self._until(victim, lambda one: one.state != "draining")
                await asyncio.to_thread(self._control.cordon, victim, on=False)
            case "role":
                await self._there_and_back(victim)
            case "rolling_restart":
                await self._restart_all()

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

    async def _whole(self) -> None:
        """Both pools have all their instances. Returns when that takes too long, too."""
        end = time.monotonic() + SETTLED
        while time.monotonic() < end:
            with contextlib.suppress(TandemError):
                pools = (await asyncio.to_thread(self._control.status)).pools
                if all(pool.ready == pool.target and not pool.draining for pool in pools):
                    return
            await asyncio.sleep(POLL)

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
