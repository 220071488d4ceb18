"""What this machine is and what runs on it: processor time and memory of process trees, and of all others."""

from __future__ import annotations

import os
import platform
import re
from collections.abc import Iterable
from contextlib import suppress
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import psutil

from cluster.bench.statistics import Value

_PSS = re.compile(rb"^Pss:\s+(\d+) kB", re.MULTILINE)


class Machine(Value):
    """Where and when a benchmark ran. Memory in bytes; `load` is the load average of a minute as it began."""

    tandem: str
    began: str
    processor: str
    cores: int
    memory: int
    system: str
    python: str
    load: float

    @classmethod
    def here(cls) -> Machine:
        return cls(
            tandem=_version(),
            began=datetime.now(UTC).isoformat(timespec="seconds"),
            processor=_processor(),
            cores=len(os.sched_getaffinity(0)),
            memory=psutil.virtual_memory().total,
            system=f"{platform.system()} {platform.release()}",
            python=platform.python_version(),
            load=os.getloadavg()[0],
        )

    def line(self) -> str:
        """For people."""
        return (
            f"tandem {self.tandem} · {self.began} · {self.processor}, {self.cores} cores, "
            f"{self.memory / 2**30:.0f} GiB · {self.system} · Python {self.python} · "
            f"load before {self.load:.2f}"
        )


class Busy:
    """Processor time from here on: the machine's, this process's and that of process trees."""

    def __init__(self, pids: Iterable[int]) -> None:
        self._pids = tuple(pids)
        self._before = self._now()

    def since(self) -> tuple[float, float, float]:
        """Seconds of all processors: of the machine, of this process, of the trees."""
        machine, own, trees = (now - before for now, before in zip(self._now(), self._before, strict=True))
        return machine, own, trees

    def _now(self) -> tuple[float, float, float]:
        times = psutil.cpu_times()
        idle = times.idle + getattr(times, "iowait", 0.0)
        # Guests are counted in user and nice already.
        guests = getattr(times, "guest", 0.0) + getattr(times, "guest_nice", 0.0)
        own = psutil.Process().cpu_times()
        return sum(times) - idle - guests, own.user + own.system, _seconds(tree(self._pids))


def tree(pids: Iterable[int]) -> list[psutil.Process]:
    """The processes and all their descendants, each once."""
    found: dict[int, psutil.Process] = {}
    for pid in pids:
        with suppress(psutil.Error):
            root = psutil.Process(pid)
            found |= {process.pid: process for process in (root, *root.children(recursive=True))}
    return list(found.values())


def memory(pids: Iterable[int]) -> int | None:
    """Bytes of process trees, shared pages divided among who shares them (PSS); None without any process."""
    return proportional(process.pid for process in tree(pids))


def proportional(pids: Iterable[int]) -> int | None:
    """The same of the processes alone, without their descendants."""
    total, seen = 0, False
    for pid in pids:
        with suppress(OSError):
            found = _PSS.search(Path(f"/proc/{pid}/smaps_rollup").read_bytes())
            if found:
                total += int(found[1]) * 1024
                seen = True
    return total if seen else None


def _seconds(processes: Iterable[psutil.Process]) -> float:
    total = 0.0
    for process in processes:
        with suppress(psutil.Error):
            times = process.cpu_times()
            # Children that ended meanwhile stay in their parent's account.
            total += times.user + times.system + times.children_user + times.children_system
    return total


def _version() -> str:
    try:
        return version("tandem-serving")
    except PackageNotFoundError:
        return "unknown"


def _processor() -> str:
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines():
            name, _, value = line.partition(":")
            if name.strip() == "model name":
                return value.strip()
    return platform.processor() or platform.machine()
