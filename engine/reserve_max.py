"""Admission by the longest that a request may become: what is admitted never has to be preempted.

After ORCA (OSDI'22, algorithm 1): a request joins when the slots of all that run, each at its longest, and
its own fit the pool; the first that does not ends the round, so nobody is overtaken.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from collections.abc import Sequence as SequenceOf

from engine.batch import BatchPolicy, Share
from engine.coasting import Steady
from engine.request import Request
from engine.sequence import Sequence


def longest(request: Request) -> int:
    """Slots of all choices at their longest; they have the prompt in common."""
    return len(request.prompt) + request.sampling.n * request.sampling.max_tokens


class ReserveMax:
    """A BatchPolicy around another, to which it shows only as many waiting sequences as `slots` allow.

    `size` says how many of them a request takes.
    """

    def __init__(self, inner: BatchPolicy, slots: int, size: Callable[[Request], int] = longest) -> None:
        self._inner = inner
        self._size = size
        self.slots = slots

    def share(self, running: SequenceOf[Sequence], waiting: Iterable[Sequence], now: float) -> list[Share]:
        reserved = sum(
            self._size(request) for request in {one.request.id: one.request for one in running}.values()
        )
        return self._inner.share(running, self._room(waiting, reserved), now)

    def steady(self, running: SequenceOf[Sequence], now: float) -> int:
        """As long as the policy inside."""
        return self._inner.steady(running, now) if isinstance(self._inner, Steady) else 0

    def _room(self, waiting: Iterable[Sequence], reserved: int) -> Iterator[Sequence]:
        for sequence in waiting:
            reserved += self._size(sequence.request)
            if reserved > self.slots:
                return
            yield sequence
