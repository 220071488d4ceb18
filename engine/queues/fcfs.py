"""First come, first served; a preempted sequence goes back to the head."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator

from engine.sequence import Sequence, SequenceKey


class FCFSQueue:
    """A WaitingQueue with one level. All operations are O(1)."""

    def __init__(self) -> None:
        self._waiting: OrderedDict[SequenceKey, Sequence] = OrderedDict()

    def add(self, sequence: Sequence, *, front: bool = False) -> None:
        key = sequence.key
        assert key not in self._waiting, f"{key} waits already"
        self._waiting[key] = sequence
        if front:
            self._waiting.move_to_end(key, last=False)

    def remove(self, key: SequenceKey) -> Sequence | None:
        return self._waiting.pop(key, None)

    def __iter__(self) -> Iterator[Sequence]:
        return iter(self._waiting.values())

    def __len__(self) -> int:
        return len(self._waiting)
