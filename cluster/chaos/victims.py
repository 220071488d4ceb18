"""Which process a fault is to hit, and the ways of hurting one from outside.

A process is known by its id, so the runner must be on the machine of the victim, and its user's.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import platform
import random
import signal
from collections.abc import Callable
from dataclasses import dataclass

import psutil

from cluster import control_pb2 as pb

CONTROLLER, GATEWAY = "controller", "gateway"

KILLING = ("kill", "kill_node", "hang")
"""Faults after which the victim is gone, whatever it was at."""

STOP_POLL = 0.1
"""Seconds until it is seen that a stopped process has been killed."""


@dataclass(frozen=True, slots=True)
class Victim:
    """`kind` is prefill, decode, gateway or controller; `node` the machine."""

    name: str
    kind: str
    pid: int
    node: str


def processes(status: pb.ClusterStatus) -> list[Victim]:
    """All that the controller knows, itself among them."""
    found = [Victim(CONTROLLER, CONTROLLER, status.controller_pid, status.controller_node)]
    found += [Victim(one.name, GATEWAY, one.pid, one.node) for one in status.gateways]
    found += [Victim(one.name, one.role, one.pid, one.node) for one in status.instances if one.pid]
    return found


def pick(
    target: str,
    status: pb.ClusterStatus,
    rng: random.Random,
    spared: Callable[[Victim], bool] = lambda victim: False,
) -> Victim:
    """One of those that `target` means: a kind, `instance`, or a name; one that is spared only for want of
    others.

    Raises LookupError if there is none, or it is on another machine.
    """
    usable = {one.name for one in status.instances if one.state == "ready" and not one.cordoned}
    listening = {one.name for one in status.gateways if not one.standby}
    found = [
        one for one in processes(status)
        if target in (one.kind, one.name) or (target == "instance" and one.kind not in (CONTROLLER, GATEWAY))
    ]  # fmt: skip
    found = [one for one in found if one.kind in (CONTROLLER, GATEWAY) or one.name in usable]
    # Whoever listens has the streams: one that stands by is hit by its name only.
    found = [one for one in found if one.kind != GATEWAY or one.name == target or one.name in listening]
    # Of a process that has just died the controller may not know yet.
    found = [one for one in found if one.node != platform.node() or psutil.pid_exists(one.pid)]
    if not found:
        raise LookupError(f"there is no {target} that could be hit")
    victim = rng.choice([one for one in found if not spared(one)] or found)
    if victim.node != platform.node():
        raise LookupError(f"{victim.name} is on {victim.node}: run the scenario there")
    return victim


def worth(kind: str, victim: Victim, status: pb.ClusterStatus) -> bool:
    """Whether there is something to be seen when this is done to that victim: to kill an instance that has no
    request shows nothing."""
    running = {one.name: one.status.running + one.status.waiting for one in status.instances}
    return kind not in KILLING or running.get(victim.name, 1) > 0


async def stop(pid: int, seconds: float) -> None:
    """SIGSTOP, and SIGCONT if it still lives then; over as soon as it does not."""
    process = psutil.Process(pid)
    os.kill(pid, signal.SIGSTOP)
    try:
        for _ in range(round(seconds / STOP_POLL)):
            await asyncio.sleep(STOP_POLL)
            if not _lives(process):
                break
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGCONT)


def _lives(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


async def fill_disk(pid: int, seconds: float) -> None:
    """No file that the process writes can grow, as on a full disk: each attempt is an error.

    The limit on the size of files is set to nothing; files in memory, such as those that KV is copied
    through, are files too.
    """
    process = psutil.Process(pid)
    soft, hard = process.rlimit(psutil.RLIMIT_FSIZE)
    process.rlimit(psutil.RLIMIT_FSIZE, (0, hard))
    try:
        await asyncio.sleep(seconds)
    finally:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.rlimit(psutil.RLIMIT_FSIZE, (soft, hard))


async def take_memory(size: int, seconds: float) -> None:
    """Hold so many bytes of the machine's memory, every page of them."""
    ballast = bytearray(size)
    ballast[::4096] = b"\1" * len(ballast[::4096])
    await asyncio.sleep(seconds)
    del ballast


def kill_node(victim: Victim, status: pb.ClusterStatus) -> None:
    """SIGKILL to the Ray daemon of the victim's node, with which all of the node's processes end.

    Raises LookupError if that node is the head, or there is no such daemon.
    """
    if on_head(victim):
        raise LookupError(f"{victim.name} is on Ray's head node, with which the whole cluster would end")
    daemon(victim.pid).kill()


def on_head(victim: Victim) -> bool:
    """Whether it runs on Ray's head node; False also where it does not run. Raises LookupError."""
    with contextlib.suppress(psutil.NoSuchProcess):
        beside = psutil.Process(daemon(victim.pid).ppid()).children()
        return any(child.name() == "gcs_server" for child in beside)
    return False


def daemon(pid: int) -> psutil.Process:
    """The raylet above a process."""
    for parent in psutil.Process(pid).parents():
        if parent.name() == "raylet":
            return parent
    raise LookupError(f"process {pid} has no raylet above it")
