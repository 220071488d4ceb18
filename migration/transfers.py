"""What an instance has sent to others since it began: bytes with their time, and failures by kind."""

from __future__ import annotations

import threading
from bisect import bisect_left
from collections import Counter
from dataclasses import dataclass, field

SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
"""Upper bounds of the buckets of a committed movement's time, in seconds."""

KINDS = ("refused", "timeout", "lost", "aborted", "preempted", "other")
"""Why movements fail, for labels: the words of a reason name instances and are without bound."""

MOST_PAIRS = 256

_WORDS = {
    "refused": ("refused", "overloaded", "no room", "draining"),
    "timeout": ("timeout", "in time", "did not"),
    "lost": ("lost", "broke", "reset", "closed", "reach", "died"),
    "aborted": ("aborted",),
    "preempted": ("preempted", "ended"),
}


@dataclass(slots=True)
class Transfer:
    """All movements over one transport to one destination; `bytes` and `seconds` of the committed ones."""

    bytes: int = 0
    seconds: float = 0.0
    buckets: list[int] = field(default_factory=lambda: [0] * (len(SECONDS) + 1))
    failures: Counter[str] = field(default_factory=Counter)


class TransferLog:
    """By transport and destination. Thread-safe: every link has a thread of its own."""

    def __init__(self) -> None:
        self._door = threading.Lock()
        self._pairs: dict[tuple[str, str], Transfer] = {}

    def committed(self, transport: str, destination: str, nbytes: int, seconds: float) -> None:
        with self._door:
            one = self._pair(transport, destination)
            one.bytes += nbytes
            one.seconds += seconds
            one.buckets[bisect_left(SECONDS, seconds)] += 1

    def failed(self, transport: str, destination: str, reason: str) -> None:
        with self._door:
            self._pair(transport, destination).failures[kind(reason)] += 1

    def listed(self) -> list[tuple[str, str, Transfer]]:
        """Transport, destination and what was sent."""
        with self._door:
            return [
                (*pair, Transfer(one.bytes, one.seconds, list(one.buckets), Counter(one.failures)))
                for pair, one in self._pairs.items()
            ]

    def _pair(self, transport: str, destination: str) -> Transfer:
        pair = (transport, destination)
        if pair not in self._pairs and len(self._pairs) >= MOST_PAIRS:
            pair = (transport, "other")
        return self._pairs.setdefault(pair, Transfer())


def kind(reason: str) -> str:
    """One of KINDS."""
    words = reason.lower()
    return next((name for name, signs in _WORDS.items() if any(sign in words for sign in signs)), "other")
