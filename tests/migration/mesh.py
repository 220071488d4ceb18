"""Several decode instances in one process, any of which can move its requests to any other."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from contextlib import contextmanager
from typing import Any

from decode_pool.instance import DecodeInstance
from engine.outcome import Emitted
from engine.request import Request
from engine.sequence import START
from migration.moved import Moved
from migration.transport import Address
from tests.engine.toy import alone
from tests.migration.pair import BOUND, Ends, Engine, Home

SLOW = 0.02
"""Seconds of a step while somebody moves."""


class Node:
    """One instance."""

    def __init__(
        self, name: str, home: Home, *, total: int, padding: int, block_size: int, **options: Any
    ) -> None:
        self.name = name
        self.engine = Engine(name, home, total=total, padding=padding, block_size=block_size, seats=64)
        self.ends = Ends(self.engine, **options)
        self.role = DecodeInstance(name, self.engine.loop, self.ends.sender, self.ends.receiver)

    @property
    def address(self) -> Address:
        return self.ends.receiver.address


class Mesh:
    """Nodes, their home, and every `Moved`."""

    def __init__(
        self,
        forced: str = "auto",
        *,
        nodes: int = 3,
        blocks: int = 256,
        padding: int = 0,
        pace: float = 0.0,
        sizes: Sequence[int] = (),
        **options: Any,
    ) -> None:
        self.home = Home()
        options |= {"padding": padding, "forced": forced}
        every = list(sizes) or [4] * nodes
        self.nodes = {
            name: Node(name, self.home, total=blocks * 4 // size, block_size=size, **options)
            for name, size in ((f"d{number}", size) for number, size in enumerate(every))
        }
        self._pace = pace
        self._moves: list[Future[Moved]] = []
        for node in self.nodes.values():
            node.engine.runner.dawdle = self._dawdle

    def _dawdle(self) -> None:
        """Steps are slow while somebody moves, so that a busy machine does not end all requests first."""
        under_way = [move for move in self._moves if not move.done()]
        if under_way:
            wait(under_way, timeout=SLOW, return_when=FIRST_COMPLETED)
        elif self._pace:
            threading.Event().wait(self._pace)

    def start(self, where: str, *requests: Request) -> None:
        for request in requests:
            self.home.open(request, START)
            self.nodes[where].role.start(request, (), START, "home").result(BOUND)

    def move(self, request: Request, source: str, destination: str) -> Future[Moved]:
        move = self.nodes[source].role.move(request.id, self.nodes[destination].address, "a test")
        self._moves.append(move)
        return move

    def moved(self, request: Request, source: str, destination: str) -> Moved:
        return self.move(request, source, destination).result(BOUND)

    def until(self, request: Request, tokens: int, choice: int = 0) -> None:
        """Until so many tokens of a choice have come."""

        def reached() -> bool:
            known = [one for _, one in self.home.pushed if one.key == (request.id, choice)]
            return any(one.index + 1 >= tokens for one in known)

        self.home.wait(reached)

    def served(self, *requests: Request) -> None:
        """Every choice has the tokens it would have alone, and nothing is left of it anywhere."""
        for one in requests:
            for choice in range(one.sampling.n):
                assert self.home.output(one, choice) == alone(one, choice)
        self.rest()

    def rest(self) -> None:
        for node in self.nodes.values():
            node.engine.rest()

    def close(self) -> None:
        for node in self.nodes.values():
            node.ends.close()
        for node in self.nodes.values():
            node.engine.loop.stop(BOUND)


@contextmanager
def mesh(forced: str = "auto", **options: Any) -> Iterator[Mesh]:
    """A mesh whose ledgers balance at the end, and that leaves no thread behind."""
    before = set(threading.enumerate())
    one = Mesh(forced, **options)
    try:
        yield one
        one.rest()
    finally:
        one.close()
    left = [thread for thread in set(threading.enumerate()) - before if thread.name.startswith("d")]
    for thread in left:
        thread.join(BOUND)
    assert not [thread.name for thread in left if thread.is_alive()]


class Itinerary:
    """Moves requests when their outputs reach planned lengths, each to the planned node."""

    def __init__(self, mesh: Mesh) -> None:
        self._mesh = mesh
        self._stops: dict[str, list[tuple[int, str]]] = {}
        self._last: dict[str, Future[Moved]] = {}
        self._lock = threading.Lock()
        self.requests: list[Request] = []
        self._known: dict[str, Request] = {}
        self.moves: list[Future[Moved]] = []
        self.planned = 0
        mesh.home.heard = self._heard

    def plan(self, request: Request, stops: list[tuple[int, str]]) -> None:
        """`stops`: (tokens of choice 0, where to go then), in order. A move that is due during another
        waits for its end."""
        self.requests.append(request)
        self._known[request.id] = request
        self._stops[request.id] = list(stops)
        self.planned += len(stops)

    def _heard(self, instance: str, one: Emitted) -> None:
        """In the engine's thread of `instance`, which has just pushed a token."""
        stops = self._stops.get(one.key.request_id)
        if not stops or one.key.choice or one.index + 1 < stops[0][0]:
            return
        name = one.key.request_id
        with self._lock:
            if name in self._last and not self._last[name].done():
                return
            _, where = stops.pop(0)
            if where == instance:
                self.planned -= 1
                return
            self._last[name] = self._mesh.move(self._known[name], instance, where)
            self.moves.append(self._last[name])

    def outcomes(self) -> list[Moved]:
        return [move.result(BOUND) for move in self.moves]
