"""Whose KV makes room when there are no blocks: the last who runs, or whom the batch policy needs latest."""

from __future__ import annotations

import math
from collections.abc import Iterable

from engine.batch import BatchPolicy
from engine.roster import Roster
from engine.sequence import Sequence, Tier
from engine.tiers import Ranked


class Evictor:
    """Serves one step at a time, from `begin` on.

    A sequence that grows always finds room: victims are taken until it does, itself the last. One that is to
    join finds room at the cost of others only with a policy that ranks them, a second tier with room for what
    they have computed, and its guard's consent; else it waits. `evicted` are the ids of those who went in
    this step.
    """

    def __init__(self, roster: Roster, policy: BatchPolicy) -> None:
        self._roster = roster
        self._tables = roster.tables
        self._tiers = roster.tiers
        self._ranked = policy if isinstance(policy, Ranked) else None
        self._chooses = self._ranked is not None and self._tiers.settings.slots > 0
        self._latest: list[Sequence] | None = None
        self._now = 0.0
        self.evicted: set[int] = set()

    def begin(self, now: float) -> None:
        self._now = now
        self._latest = None
        self.evicted.clear()
        self._tiers.begin(now)

    def victim(self) -> Sequence:
        """Who goes when somebody must: there is always one who runs."""
        return self._order()[0] if self._ranked is not None else self._roster.running[-1]

    def evict(self, victim: Sequence, *, whole: bool = True) -> None:
        """Take its blocks; `whole` unless a copy on write of its own is still to be made."""
        self._roster.preempt(victim, whole=whole)
        if self._latest is not None:
            self._latest = [one for one in self._latest if one is not victim]
        self.evicted.add(id(victim))

    def joined(self) -> None:
        """Somebody runs who did not when the step began."""
        self._latest = None

    def obtainable(self, sequence: Sequence) -> int:
        """Blocks that could be taken from those who run behind one that waits, as far as the guard and the
        room in host memory allow."""
        if not self._chooses:
            return 0
        blocks, held, seconds = 0, 0, self._tiers.guard.left
        for victim in self._behind(sequence):
            seconds -= self._tiers.cost(len(victim.blocks))
            held += self._held(victim)
            if seconds < 0 or not self._tiers.fits(victim, held):
                break
            blocks += len(victim.blocks)
        return blocks

    def next_behind(self, sequence: Sequence) -> Sequence | None:
        """The first that may be taken to let one in that waits, if anybody."""
        if not self._chooses:
            return None
        first = next(iter(self._behind(sequence)), None)
        return first if first is not None and self._allowed(first) else None

    def ahead(self, busy: Iterable[Sequence]) -> None:
        """Proactively: swap out who is needed latest and is not `busy`, until some blocks are idle."""
        if not self._chooses or not self._tiers.settings.proactive:
            return
        pool, working = self._tables.pool, {id(one) for one in busy}
        if pool.available >= self.idle or self._tiers.guard.left <= 0:
            return
        for victim in list(self._order()):
            if pool.available >= self.idle:
                break
            if id(victim) not in working and self._allowed(victim):
                self.evict(victim)

    def returning(self) -> Iterable[Sequence]:
        """Proactively: whom to bring back before it is picked, in a step in which nobody was evicted."""
        if not self._chooses or not self._tiers.settings.proactive or self.evicted:
            return
        assert self._ranked is not None
        away = [one for one in self._roster.queue if one.tier is Tier.HOST] if self._tiers.used else []
        for sequence in reversed(self._ranked.latest(away, self._now)):
            if self._tables.pool.blocks_for(len(sequence)) + self.idle > self._tables.pool.available:
                return
            yield sequence

    @property
    def idle(self) -> int:
        """Blocks of the device that are kept free for those who come."""
        return math.ceil(self._tables.pool.total * self._tiers.settings.idle)

    def _held(self, victim: Sequence) -> int:
        """Blocks with KV in them."""
        return self._tables.pool.blocks_for(victim.computed)

    def _allowed(self, victim: Sequence) -> bool:
        """Whether it may be swapped out by choice: in time, and with nothing to be computed again."""
        in_time = self._tiers.cost(len(victim.blocks)) <= self._tiers.guard.left
        return in_time and self._tiers.fits(victim, self._held(victim))

    def _order(self) -> list[Sequence]:
        if self._latest is None:
            assert self._ranked is not None
            self._latest = self._ranked.latest(self._roster.running, self._now)
        return self._latest

    def _behind(self, sequence: Sequence) -> Iterable[Sequence]:
        ranked = self._ranked
        assert ranked is not None
        return (one for one in self._order() if ranked.before(sequence, one))
