"""Admission by the longest that a request may become: what is admitted never has to be preempted.

After ORCA (OSDI'22, algorithm 1): a request joins when all who hold blocks here, each at its longest, and it
fit the pool; the first that does not ends the round, so nobody is overtaken. Whatever comes from another
instance is asked the same before its blocks are reserved. A prefill instance counts the answer too until it
has handed a request over: one that nobody takes is decoded where it is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from collections.abc import Sequence as SequenceOf

from engine.admission import most_blocks
from engine.batch import BatchPolicy, Limits, Share, Wraps
from engine.coasting import Steady
from engine.request import Request
from engine.reservation import Reservation
from engine.roster import Roster
from engine.sequence import Sequence


def longest(request: Request) -> int:
    """Slots of all choices at their longest; they have the prompt in common."""
    return len(request.prompt) + request.sampling.n * request.sampling.max_tokens


class ReserveMax:
    """A BatchPolicy around another, by which a core knows that it is to reserve: see `Longest`.

    It reserves blocks of its pool. With `slots` it counts as others did, who had no blocks: a request takes
    `size` of them, and that the pool has as many is for who says so.
    """

    def __init__(
        self, inner: BatchPolicy, slots: int | None = None, size: Callable[[Request], int] = longest
    ) -> None:
        self.inner = inner
        self.slots = slots
        self.size = size

    def share(self, running: SequenceOf[Sequence], waiting: Iterable[Sequence], now: float) -> list[Share]:
        return self.inner.share(running, waiting, now)

    def steady(self, running: SequenceOf[Sequence], now: float) -> int:
        """As long as the policy inside."""
        return self.inner.steady(running, now) if isinstance(self.inner, Steady) else 0


def rule_of(policy: BatchPolicy) -> ReserveMax | None:
    """The one among the policies around one another, if there is one."""
    while not isinstance(policy, ReserveMax):
        if not isinstance(policy, Wraps):
            return None
        policy = policy.inner
    return policy


class Longest:
    """What all who hold blocks here may come to hold, and who has room beside them: everybody without a rule.

    `coming` are the reservations of those who are on their way here.
    """

    def __init__(
        self, roster: Roster, limits: Limits, rule: ReserveMax | None, coming: Mapping[int, Reservation]
    ) -> None:
        self._roster = roster
        self._pool = roster.tables.pool
        self._limits = limits
        self._rule = rule
        self._coming = coming

    def fitting(self, waiting: Iterable[Sequence]) -> Iterator[Sequence]:
        """Those of `waiting` for whom there is room together, up to the first for whom there is not."""
        if self._rule is None:
            yield from waiting
            return
        held = self._held()
        for sequence in waiting:
            need = self._together([sequence])
            if held + need > self._total:
                break
            held += need
            yield sequence

    def admits(self, request: Request, head: Sequence | None = None) -> bool:
        """Whether there is room for one that comes from elsewhere, beside `head` who waits here."""
        return self._rule is None or self._held() + self._own(head) + self._size(request) <= self._total

    @property
    def _total(self) -> int:
        assert self._rule is not None
        return self._pool.total if self._rule.slots is None else self._rule.slots

    def _size(self, request: Request) -> int:
        assert self._rule is not None
        if self._rule.slots is None:
            return most_blocks(request, self._pool, self._limits)
        return self._rule.size(request)

    def _own(self, sequence: Sequence | None) -> int:
        return 0 if sequence is None else self._together([sequence])

    def _held(self) -> int:
        here: dict[str, list[Sequence]] = {}
        for one in (*self._roster.running, *self._roster.paused.values()):
            if one.blocks:
                here.setdefault(one.request.id, []).append(one)
        return sum(map(self._together, here.values())) + sum(
            self._size(one.request) for one in self._coming.values() if one.blocks
        )

    def _together(self, sequences: SequenceOf[Sequence]) -> int:
        """What choices of one request take: choices that came in one by one may not share their prompt."""
        request = sequences[0].request
        assert self._rule is not None
        if self._rule.slots is not None:
            return self._rule.size(request)
        live = self._roster.live[request.id]
        size = self._pool.block_size
        shared = len(request.prompt) // size
        prompts = len({tuple(one.blocks[:shared]) for one in sequences})
        own = self._pool.blocks_for(min(request.longest, self._limits.max_length) - 1) - shared
        return prompts * shared + own * sum(live.width(one) for one in sequences)
