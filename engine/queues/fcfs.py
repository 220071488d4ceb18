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

    by_priority = True

    def __init__(self) -> None:
        self._priorities: dict[SequenceKey, int] = {}
        self._lines: dict[int, OrderedDict[SequenceKey, Sequence]] = {}

    def add(self, sequence: Sequence, *, front: bool = False) -> None:
        key, priority = sequence.key, sequence.request.priority
        assert key not in self._priorities, f"{key} waits already"
        self._priorities[key] = priority
        if priority not in self._lines:
            self._lines[priority] = OrderedDict()
            self._lines = dict(sorted(self._lines.items(), reverse=True))
        self._lines[priority][key] = sequence
        if front:
            self._lines[priority].move_to_end(key, last=False)

    def remove(self, key: SequenceKey) -> Sequence | None:
        priority = self._priorities.pop(key, None)
        if priority is None:
            return None
        sequence = self._lines[priority].pop(key)
        if not self._lines[priority]:
            del self._lines[priority]
        return sequence

    def __iter__(self) -> Iterator[Sequence]:
        return chain.from_iterable(line.values() for line in self._lines.values())

    def __len__(self) -> int:
        return len(self._priorities)
