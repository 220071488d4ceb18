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
        self._waited: dict[Path, int] = {}

    def __call__(self, seconds: float) -> float:
        """For how many of the `seconds` since it was last asked the most delayed thread waited for a CPU; for
        all if one waits for a disk."""
        before, self._waited = self._waited, {}
        longest, blocked = 0, False
        for thread in self._threads():
            with contextlib.suppress(OSError, ValueError, IndexError):
                waited = self._waited[thread] = int((thread / "schedstat").read_text().split()[1])
                longest = max(longest, waited - before.get(thread, waited))
                # After the name in parentheses, which may hold anything.
                blocked |= (thread / "stat").read_text().rpartition(")")[2].split()[0] == "D"
        return seconds if blocked else min(longest / 1e9, seconds)

    def _threads(self) -> Iterable[Path]:
        for process in self._processes():
            with contextlib.suppress(OSError):
                yield from Path(f"/proc/{process}/task").iterdir()
