"""What the cluster's processes on this machine hold while a scenario runs, and what they leave when they end.

look, look, look … ─▶ memory and handles of each process ─▶ by kind: does it grow?
end                ─▶ processes that should be gone, files in /dev/shm that nobody has open
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import platform
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from cluster import control_pb2 as pb
from cluster.chaos.victims import Victim, processes

LOOK = 5.0
"""Seconds between two looks."""

WARM = 60.0
"""Seconds of a process's life that say nothing of its growth: caches fill, code is loaded."""

ENOUGH = 300.0
"""Seconds that processes of a kind must have been watched, all together, for their growth to be judged."""

GONE = 5.0
"""Seconds that a process which is not wanted any more may take to be gone."""

SHARED_MEMORY = Path("/dev/shm")


@dataclass(frozen=True, slots=True)
class Held:
    """At `time` (monotonic seconds): bytes that are the process's alone, and open files and sockets."""

    time: float
    memory: int
    handles: int


@dataclass(slots=True)
class Life:
    """One process: `kind` is a role, gateway, controller, or what Ray calls it."""

    name: str
    kind: str
    process: psutil.Process
    seen: list[Held] = field(default_factory=list)

    @property
    def warm(self) -> list[Held]:
        """From when it had been watched for a while."""
        return [one for one in self.seen if one.time >= self.seen[0].time + WARM]


@dataclass(frozen=True, slots=True)
class Growth:
    """Of all processes of a kind: bytes an hour, over so many of them and so many seconds in all.

    `memory` is the most that one of them held at the last look at it; `handles` by how many more open files
    and sockets one ended than it had at first.
    """

    kind: str
    processes: int
    seconds: float
    slope: float | None
    memory: int
    handles: int


def growth(kind: str, lives: Sequence[Life]) -> Growth:
    """Least squares with one slope for all and a height for each, so that short lives count too."""
    above = below = seconds = 0.0
    for life in lives:
        warm = life.warm
        if len(warm) < 2:
            continue
        time_mean = sum(one.time for one in warm) / len(warm)
        memory_mean = sum(one.memory for one in warm) / len(warm)
        above += sum((one.time - time_mean) * (one.memory - memory_mean) for one in warm)
        below += sum((one.time - time_mean) ** 2 for one in warm)
        seconds += warm[-1].time - warm[0].time
    return Growth(
        kind=kind,
        processes=len(lives),
        seconds=round(seconds, 1),
        slope=3600 * above / below if seconds >= ENOUGH else None,
        memory=max(life.seen[-1].memory for life in lives),
        handles=max(life.seen[-1].handles - life.seen[0].handles for life in lives),
    )


class Footprint:
    """Looks at the processes that the controller knows, and at Ray's own around them."""

    def __init__(self) -> None:
        self._lives: dict[int, Life] = {}
        self._shared = set(_shared())

    async def watch(self, victims: Callable[[], Sequence[Victim]]) -> None:
        """Look again and again; `victims` gives those of now."""
        while True:
            await asyncio.to_thread(self.look, victims())
            await asyncio.sleep(LOOK)

    def look(self, victims: Sequence[Victim]) -> None:
        for victim in victims:
            if victim.node == platform.node():
                self._add(victim.pid, victim.name, victim.kind)
        for process in _ray_around({victim.pid for victim in victims}):
            with contextlib.suppress(psutil.Error):
                self._add(process.pid, process.name(), process.name())
        for life in self._lives.values():
            with contextlib.suppress(psutil.Error, OSError):
                if life.process.is_running():
                    held = Held(time.monotonic(), life.process.memory_full_info().uss, life.process.num_fds())
                    life.seen.append(held)

    def growths(self) -> list[Growth]:
        """By kind."""
        kinds: dict[str, list[Life]] = {}
        for life in self._lives.values():
            if life.seen:
                kinds.setdefault(life.kind, []).append(life)
        return [growth(kind, kinds[kind]) for kind in sorted(kinds)]

    async def left(self, status: pb.ClusterStatus, within: float = GONE) -> list[str]:
        """What should be gone: processes of ours that the controller does not know, orphaned shared files."""
        return await asyncio.to_thread(self._left, {one.pid for one in processes(status)}, within)

    def _left(self, wanted: set[int], within: float) -> list[str]:
        ours = {
            life.process: life.name
            for life in self._lives.values()
            if life.kind in ("prefill", "decode", "gateway", "controller") and life.process.pid not in wanted
        }
        _, alive = psutil.wait_procs(list(ours), within)
        files = _orphans(set(_shared()) - self._shared)
        names = [ours[process] for process in alive if _alive(process)]
        return [f"the process of {name}" for name in names] + [f"{SHARED_MEMORY}/{name}" for name in files]

    def _add(self, pid: int, name: str, kind: str) -> None:
        life = self._lives.get(pid)
        with contextlib.suppress(psutil.Error):
            if life is None or not life.process.is_running():
                self._lives[pid] = Life(name, kind, psutil.Process(pid))
            else:
                life.kind = kind


def _alive(process: psutil.Process) -> bool:
    with contextlib.suppress(psutil.Error):
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    return False


def _ray_around(pids: set[int]) -> list[psutil.Process]:
    """The Ray daemons above these processes, and what else of Ray is beside and below them."""
    found: dict[int, psutil.Process] = {}
    for pid in pids:
        with contextlib.suppress(psutil.Error):
            for parent in psutil.Process(pid).parents():
                if parent.name() == "raylet":
                    near = [parent, *parent.children(), *psutil.Process(parent.ppid()).children()]
                    found |= {one.pid: one for one in near if one.pid not in pids and _lasting(one)}
    return list(found.values())


def _lasting(process: psutil.Process) -> bool:
    """Daemons and Serve's controller, not the idle workers that come and go."""
    with contextlib.suppress(psutil.Error):
        return process.name() in ("raylet", "gcs_server") or "ServeController" in " ".join(process.cmdline())
    return False


def _shared() -> list[str]:
    """Files of this user in shared memory."""
    found = []
    for path in SHARED_MEMORY.iterdir() if SHARED_MEMORY.is_dir() else ():
        with contextlib.suppress(OSError):
            if path.stat().st_uid == os.getuid():
                found.append(path.name)
    return found


def _orphans(names: set[str]) -> list[str]:
    """Those that no living process has mapped."""
    if not names:
        return []
    mapped = ""
    for maps in Path("/proc").glob("[0-9]*/maps"):
        with contextlib.suppress(OSError):
            mapped += maps.read_text(errors="replace")
    return sorted(name for name in names if f"{SHARED_MEMORY}/{name}" not in mapped)
