"""First come, first served among those of one priority; a preempted one goes back to their head."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from itertools import chain

from engine.sequence import Sequence, SequenceKey


class FCFSQueue:
    """A WaitingQueue with a line for each priority that somebody has, the highest first.

    All operations are O(1), but for a priority that nobody had.
    """

    def __init__(self) -> None:
        self._lines: dict[int, OrderedDict[SequenceKey, Sequence]] = {}

    def add(self, sequence: Sequence, *, front: bool = False) -> None:
        key, priority = sequence.key, sequence.request.priority
        assert all(key not in line for line in self._lines.values()), f"{key} waits already"
        if priority not in self._lines:
            self._lines[priority] = OrderedDict()
            self._lines = dict(sorted(self._lines.items(), reverse=True))
        self._lines[priority][key] = sequence
        if front:
            self._lines[priority].move_to_end(key, last=False)

    def remove(self, key: SequenceKey) -> Sequence | None:
        for priority, line in self._lines.items():
            if key in line:
                sequence = line.pop(key)
                if not line:
                    del self._lines[priority]
                return sequence
        return None

    def __iter__(self) -> Iterator[Sequence]:
        return chain.from_iterable(line.values() for line in self._lines.values())

    def __len__(self) -> int:
        return sum(map(len, self._lines.values()))
