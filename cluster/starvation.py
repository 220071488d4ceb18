"""How long processes wanted to run and could not: one that is starved is slow, not hung."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable
from pathlib import Path


class Starvation:
    """Of processes of this machine, by id, which are asked for anew each time.

    One that is not there, or of which the kernel tells nothing, is not starved.
    """

    def __init__(self, processes: Callable[[], Iterable[int]]) -> None:
        self._processes = processes
        self._waited = 0.0

    def __call__(self, seconds: float) -> float:
        """For how many of the last `seconds` their threads waited, for a CPU (added up) or a disk."""
        waited, blocked = 0.0, False
        for thread in self._threads():
            with contextlib.suppress(OSError, ValueError, IndexError):
                waited += int((thread / "schedstat").read_text().split()[1]) / 1e9
                # After the name in parentheses, which may hold anything.
                blocked |= (thread / "stat").read_text().rpartition(")")[2].split()[0] == "D"
        since, self._waited = waited - self._waited, waited
        return seconds if blocked else max(0.0, min(since, seconds))

    def _threads(self) -> Iterable[Path]:
        for process in self._processes():
            with contextlib.suppress(OSError):
                yield from Path(f"/proc/{process}/task").iterdir()
