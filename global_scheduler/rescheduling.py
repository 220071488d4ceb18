"""Which running requests should run elsewhere: pairs of instances, most crowded with freest.

After Llumnix (OSDI'24, section 4.4). An instance whose freeness is below `low` gives, one above `high`
takes; the lowest gives to the highest, one request for each pair and round. What that does in one rule:

    balance          a crowded instance sheds load before it has to preempt
    defragmentation  a large request at the head of a queue lowers the freeness until it fits
    headroom         an instance with urgent requests counts as fuller than it is
    drain            an instance that is to go has no freeness at all, and gives until it is empty

The pair is chosen here; the source itself names the request (`choose`), as it alone knows what runs there.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from global_scheduler.freeness import room
from global_scheduler.view import Load


@dataclass(frozen=True, slots=True)
class Move:
    """Take one request from `source` to `destination`: `request_id`, or the one that `choose` names there.

    It may hold `largest` tokens at most. `reason` is for the operator.
    """

    source: str
    destination: str
    request_id: str | None
    reason: str
    largest: int = 0


@dataclass(frozen=True, slots=True)
class ReschedulingSettings:
    """`low` and `high` are in blocks per running request (Llumnix's artifact: 3, 16 tokens a block).

    The gap between them keeps a request that has moved from making its new instance a source. `rest` is
    how many seconds a request stays where it came to, and an instance that took does not give.
    `headroom` is in blocks; `drain_moves` is how many requests leave one instance at once when it is to go.
    """

    low: float = 3.0
    high: float = 6.0
    rest: float = 2.0
    headroom: int = 0
    drain_moves: int = 4


@dataclass(frozen=True, slots=True)
class Movable:
    """A request that runs or waits: `tokens` known of its longest choice, `since` when it came here."""

    request_id: str
    tokens: int
    priority: int = 0
    since: float = -math.inf
    waiting: bool = False


def choose(
    running: Iterable[Movable], settings: ReschedulingSettings, now: float, *, largest: int, leaving: bool
) -> str | None:
    """The request that moves: of the lowest priority the shortest, since it is the cheapest to copy.

    One that waits costs nothing at all and goes first: it may run elsewhere at once, and what stands behind a
    large one here need not stand there.
    One that has just come stays, unless its instance is `leaving`; one of more than `largest` tokens
    would not fit. Requests in prefill are not movable and are not to be offered. None if nobody may go.
    """
    fit = [one for one in running if one.tokens <= largest and (leaving or one.since + settings.rest <= now)]
    best = min(fit, key=lambda one: (one.priority, not one.waiting, one.tokens, one.request_id), default=None)
    return None if best is None else best.request_id


class Rescheduler:
    """Pairs instances of one role. It remembers who took, so that nobody gives back at once."""

    def __init__(self, settings: ReschedulingSettings) -> None:
        self.settings = settings
        self._took: dict[str, float] = {}

    def decide(
        self, loads: Iterable[Load], now: float, leaving: Mapping[str, str] | None = None
    ) -> list[Move]:
        """The moves to begin now. `leaving` maps instances that are to be emptied to the reason why.

        An instance is source or destination, never both, and takes at most one request a round. A cordoned
        instance takes nothing; a stale one neither takes nor gives, unless it is leaving.
        """
        moves = self.plan(loads, now, leaving)
        for move in moves:
            self._took[move.destination] = now
        return moves

    def plan(self, loads: Iterable[Load], now: float, leaving: Mapping[str, str] | None = None) -> list[Move]:
        """What `decide` would give, without remembering who takes."""
        going = leaving or {}
        roles: dict[str, list[Load]] = {}
        for load in loads:
            roles.setdefault(load.role, []).append(load)
        self._took = {name: time for name, time in self._took.items() if time + self.settings.rest > now}
        return [move for role in roles.values() for move in self._pair(role, going)]

    def _pair(self, loads: list[Load], going: Mapping[str, str]) -> list[Move]:
        settings = self.settings
        free = {load.instance: room(load, headroom=settings.headroom) for load in loads}
        takers = sorted(
            (
                load
                for load in loads
                if load.instance not in going
                and not load.cordoned
                and not load.stale
                and free[load.instance] > settings.high
            ),
            key=lambda load: (-free[load.instance], load.instance),
        )
        moves: list[Move] = []
        took: set[str] = set()
        for load in self._givers(loads, free, going):
            if load.instance in took:
                continue
            takers = [one for one in takers if one is not load]
            for _ in range(min(settings.drain_moves, load.running) if load.instance in going else 1):
                if not takers:
                    break
                taker = takers.pop(0)
                took.add(taker.instance)
                moves.append(self._move(load, taker, free, going))
        return moves

    def _givers(self, loads: list[Load], free: Mapping[str, float], going: Mapping[str, str]) -> list[Load]:
        """Those that leave, then the crowded, the lowest first."""
        givers = [
            load
            for load in loads
            if load.running
            and (
                load.instance in going
                or (
                    free[load.instance] < self.settings.low
                    and not load.stale
                    and load.instance not in self._took
                    and load.running + (load.head > 0) > 1
                )
            )
        ]
        return sorted(
            givers, key=lambda load: (load.instance not in going, free[load.instance], load.instance)
        )

    def _move(self, source: Load, taker: Load, free: Mapping[str, float], going: Mapping[str, str]) -> Move:
        there = free[taker.instance]
        if source.instance in going:
            why = f"{source.instance} is {going[source.instance]}"
        elif source.head:
            why = (
                f"{source.instance} has {free[source.instance]:.1f} blocks per request "
                f"with {source.head} asked for by the head of its queue"
            )
        else:
            why = f"{source.instance} has {free[source.instance]:.1f} blocks per request"
        return Move(
            source.instance,
            taker.instance,
            None,
            f"{why}; {taker.instance} has {there:.1f}",
            largest=max(0, taker.blocks - taker.held - taker.head) * taker.block_size,
        )
