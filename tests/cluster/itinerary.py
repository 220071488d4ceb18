"""Moves requests between whole instances, in the very step that draws a planned token.

    kind      the token after which the move is asked for
    first     the first
    edge      one that fills a block
    last      the last but one: a single token is left to be drawn, by the destination
    ended     the last: the request has ended with it, and there is nothing to move
    anywhere  another one; the request runs on until it is frozen

For a move of the first three kinds the engine stands still until the session asks it to freeze the request,
so that it is frozen just there; when the session only wants to look, it does that and stands still again.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable
from concurrent.futures import FIRST_COMPLETED, Future, wait
from dataclasses import dataclass, replace
from functools import partial
from random import Random
from typing import Any

from engine.core import EngineCore
from engine.outcome import StepOutcome
from engine.request import Request
from migration import movement
from migration.moved import Moved
from tests.cluster.pools import PooledInstance, Pools

BOUND = 60.0
SLOW = 0.02
"""Seconds of a step while somebody moves, so that requests don't end before their moves do."""

ENOUGH = 6
"""Tokens that must be left for a move, which takes a few steps, to be sure of its end."""

STILL = 2.0
"""Seconds that an engine stands still for one move at most."""

FIRST, EDGE, LAST, ENDED, ANYWHERE = "first", "edge", "last", "ended", "anywhere"
STANDING = frozenset({FIRST, EDGE, LAST})
NOT_THERE = "aborted: it does not live here"


@dataclass(frozen=True)
class Move:
    """`drawn`: output tokens of choice 0 when it was asked for; `stood`: whether the engine stood still until
    the session was done with it."""

    request: Request
    kind: str
    drawn: int
    stood: bool
    result: Future[Moved]


class Itinerary:
    """`lengths`: output tokens of the whole requests; only of those with one choice is the end planned."""

    def __init__(self, all_: Pools, rng: Random) -> None:
        self._pools = all_
        self._rng = rng
        self._size = all_.decode.runner.kv.layout.block_size
        self._door = threading.Lock()
        self._requests: dict[str, tuple[Request, int]] = {}
        self._stops: dict[str, list[int]] = {}
        self._moves: dict[str, list[Move]] = {}
        self._latch = threading.Lock()
        self._awaited: dict[str, threading.Event] = {}
        self._standing: set[str] = set()
        self._drawn: dict[str, int] = {}
        self._tired: set[tuple[str, int]] = set()
        self.planned: Counter[str] = Counter()
        for one in all_.instances:
            loop: Any = one.instance._loop
            loop.call = partial(self._called, loop.call)
            one.instance._loop.observe(partial(self._heard, one))
            one.runner.dawdle = self._dawdle

    def plan(self, request: Request, length: int) -> None:
        """`length`: tokens of its shortest choice."""
        rng = self._rng
        last = max(1, length - ENOUGH)
        edges = [count for count in range(1, last) if (len(request.prompt) + count) % self._size == 0]
        stops = {
            rng.choice([1, rng.choice(edges or [1]), rng.randrange(1, last + 1)])
            for _ in range(rng.choice([0, 1, 2, 3]))
        }
        # Beyond a stop string an engine may have drawn more than its client gets.
        if request.sampling.n == 1 and not request.sampling.stop and length > 1:
            end = rng.choice([None, length - 1, length - 1, length])
            stops = {*sorted(stops)[: 2 if end else 3], *([end] if end else ())}
        self._requests[request.id] = request, length
        self._stops[request.id] = sorted(stops)
        self.planned.update(self._kind(request, length, stop) for stop in stops)

    def _kind(self, request: Request, length: int, drawn: int) -> str:
        if request.sampling.n == 1 and not request.sampling.stop:
            if drawn == length:
                return ENDED
            if drawn == length - 1:
                return LAST
        if drawn == 1:
            return FIRST
        return ANYWHERE if (len(request.prompt) + drawn) % self._size else EDGE

    def _heard(self, here: PooledInstance, outcome: StepOutcome) -> None:
        """In the engine's thread of an instance, after a step."""
        for one in outcome.emitted:
            name, stops = one.key.request_id, self._stops.get(one.key.request_id)
            if one.key.choice or not stops or one.index + 1 < stops[0]:
                continue
            with self._door:
                moves = self._moves.setdefault(name, [])
                if moves and not moves[-1].result.done():
                    continue
                stops.pop(0)
                moves.append(self._ask(here, name, one.index + 1))

    def _ask(self, here: PooledInstance, name: str, drawn: int) -> Move:
        request, length = self._requests[name]
        kind = self._kind(request, length, drawn)
        others = [other for other in self._pools.instances if other is not here]
        # Two that stand still for each other would stand for long.
        awake = [other for other in others if other.name not in self._standing]
        stands = kind in STANDING and bool(awake)
        to = self._rng.choice(awake if stands else others)
        result = here.instance.move(name, to.instance._receiver.address, "a test")
        if stands:
            self._standing.add(here.name)
            self._stand(here.instance._loop.call, name, drawn)
            result.add_done_callback(lambda _: self._over(here.name, name))
        return Move(request, kind, drawn, stands, result)

    def _stand(self, call: Callable[..., Future[Any]], name: str, drawn: int) -> None:
        """From here on the engine waits, until the session calls it or STILL is over."""
        awaited = threading.Event()

        def wait_for_it(core: EngineCore) -> None:
            if not awaited.wait(STILL):
                self._tired.add((name, drawn))

        self._awaited[name] = awaited
        self._drawn[name] = drawn
        call(wait_for_it)

    def _over(self, here: str, name: str) -> None:
        self._standing.discard(here)
        with self._latch:
            self._awaited.pop(name).set()

    def _called(self, call: Callable[..., Future[Any]], fn: Callable[[EngineCore], Any]) -> Future[Any]:
        """Somebody calls an engine: if a session wants to look or freeze, it shall not wait longer."""
        future = call(fn)
        if isinstance(fn, partial) and fn.func in (movement.freeze, movement.snapshot):
            with self._latch:
                awaited = self._awaited.get(name := fn.args[0])
                if awaited is not None:
                    if fn.func is movement.snapshot:
                        self._stand(call, name, self._drawn[name])
                    awaited.set()
        return future

    def _dawdle(self) -> None:
        with self._door:
            moves = [moves[-1].result for moves in self._moves.values() if moves]
        under_way = [result for result in moves if not result.done()]
        if under_way:
            wait(under_way, SLOW, FIRST_COMPLETED)

    def moves(self) -> list[tuple[Move, Moved]]:
        """All that were asked for, with what came of them."""
        return [
            (self._as_it_was(move), move.result.result(BOUND))
            for each in self._moves.values()
            for move in each
        ]

    def _as_it_was(self, move: Move) -> Move:
        tired = (move.request.id, move.drawn) in self._tired
        return replace(move, stood=move.stood and not tired)
