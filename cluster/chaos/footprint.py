"""What the cluster's processes on this machine hold while a scenario runs, and what they leave when they end.

look, look, look … ─▶ memory and handles of each process ─▶ by kind: does it grow?
end                ─▶ processes that should be gone, shared memory that nobody can use any more

The first look and the last are at an idle cluster, so that what is open can be compared.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import os
import platform
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from cluster import control_pb2 as pb
from cluster.chaos.handles import handles, segments, strays
from cluster.chaos.threads import to_its_end
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

POLL = 0.1


@dataclass(frozen=True, slots=True)
class Held:
    """At `time` (monotonic seconds): bytes that are the process's alone, open sockets, and open files, pipes
    and the like; segments are not among them."""

    time: float
    memory: int
    handles: int
    sockets: int = 0


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

    The slope is None where that is too little to say. `memory` is the most that one of them held at the last
    look at it. `handles` and `sockets`: how many more one that lived to the end has open than it had at the
    first look, or, if it is younger, than any of its kind had then.
    """

    kind: str
    processes: int
    seconds: float
    slope: float | None
    memory: int
    handles: int
    sockets: int = 0


def growth(kind: str, lives: Sequence[Life], first: float = 0.0, last: float = math.inf) -> Growth:
    """Least squares with one slope for all and a height for each, so that short lives count too.

    `first` and `last` are the times of the first look and the last.
    """
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
        handles=_more(lives, first, last, lambda held: held.handles),
        sockets=_more(lives, first, last, lambda held: held.sockets),
    )


def _more(lives: Sequence[Life], first: float, last: float, count: Callable[[Held], int]) -> int:
    """By how much the count of one that lived to the end has grown, at most."""
    at_first = [count(life.seen[0]) for life in lives if life.seen[0].time <= first]
    grown = []
    for life in lives:
        if life.seen[-1].time >= last:
            before = life.seen[0].time <= first or not at_first
            grown.append(count(life.seen[-1]) - (count(life.seen[0]) if before else max(at_first)))
    return max(grown, default=0)


class Footprint:
    """Looks at the processes that the controller knows, and at Ray's own around them."""

    def __init__(self) -> None:
        self._lives: dict[int, Life] = {}
        self._shared = set(_shared())
        self._times: list[float] = []
        self._strays: set[int] = set()
        self._turn = threading.Lock()

    async def watch(self, victims: Callable[[], Sequence[Victim]]) -> None:
        """Look again and again; `victims` gives those of now. Cancelled, it is over when its last look is."""
        while True:
            await to_its_end(self.look, victims())
            await asyncio.sleep(LOOK)

    def begin(self, victims: Sequence[Victim]) -> None:
        """The first look, at an idle cluster. What nobody can use any more then is not this run's doing."""
        self.look(victims)
        self._strays = set(strays(self._segments()))

    def look(self, victims: Sequence[Victim]) -> None:
        """At one time, which all that is seen then has. Of two threads one waits for the other."""
        with self._turn:
            self._look(victims)

    def _look(self, victims: Sequence[Victim]) -> None:
        now = time.monotonic()
        self._times.append(now)
        for victim in victims:
            if victim.node == platform.node():
                self._add(victim.pid, victim.name, victim.kind)
        for process in _ray_around({victim.pid for victim in victims}):
            with contextlib.suppress(psutil.Error):
                self._add(process.pid, process.name(), process.name())
        for life in self._lives.values():
            with contextlib.suppress(psutil.Error, OSError):
                if life.process.is_running():
                    opened, memory = handles(life.process.pid), life.process.memory_full_info().uss
                    life.seen.append(Held(now, memory, opened.files, opened.sockets))

    def growths(self) -> list[Growth]:
        """By kind."""
        kinds: dict[str, list[Life]] = {}
        for life in self._lives.values():
            if life.seen:
                kinds.setdefault(life.kind, []).append(life)
        ends = self._times[:1] + self._times[-1:]
        return [growth(kind, kinds[kind], *ends) for kind in sorted(kinds)]

    async def left(self, status: pb.ClusterStatus, within: float = GONE) -> list[str]:
        """What should be gone: unknown processes of ours, and orphaned shared memory."""
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
        found = [f"the process of {name}" for name in names] + [f"{SHARED_MEMORY}/{name}" for name in files]
        return found + self._stray_segments(within)

    def _stray_segments(self, within: float) -> list[str]:
        """One end of a connection may notice later than the other that it is over."""
        end = time.monotonic() + within
        while wrong := {
            inode: why for inode, why in strays(self._segments()).items() if inode not in self._strays
        }:
            if time.monotonic() > end:
                return sorted(wrong.values())
            time.sleep(POLL)
        return []

    def _segments(self) -> dict[int, Counter[int]]:
        """Those of the cluster's processes on this machine, whatever they are."""
        return segments(_family([life.process for life in self._lives.values()]))

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


def _family(processes: Sequence[psutil.Process]) -> set[int]:
    """These, if they live, and all that Ray's daemons among them have started."""
    found: set[int] = set()
    for process in processes:
        with contextlib.suppress(psutil.Error):
            if process.is_running():
                below = process.children(recursive=True) if process.name() == "raylet" else []
                found |= {process.pid, *(one.pid for one in below)}
    return found


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
