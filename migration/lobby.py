"""Who is on the way into an instance, over all links: bounds, and which epochs are stale."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable
from typing import TypeVar

from engine.errors import Draining, Fenced, Overloaded
from engine.sequence import Epoch

T = TypeVar("T")

Cancel = Callable[[Callable[[], None]], bool]
"""Ends a movement and then calls what it is given, in the movement's own thread; False if that has ended."""

REMEMBERED = 4096
"""Sessions that are over, and requests whose newest epoch is known."""


class Lobby:
    """Thread-safe. At most `most` movements at once; `expired` counts those whose lease ended."""

    def __init__(self, most: int) -> None:
        self.expired = 0
        self._most = most
        self._open = True
        self._lock = threading.Lock()
        self._over: OrderedDict[str, None] = OrderedDict()
        self._newest: OrderedDict[str, Epoch] = OrderedDict()
        self._here: dict[str, tuple[str, Cancel]] = {}

    def enter(self, session: str, request_id: str, epoch: Epoch, cancel: Cancel) -> None:
        """Raises Fenced for a stale epoch or a session that was here, Overloaded if there are too many,
        Draining after `close`. A newer epoch of a request on its way in ends the older movement.
        """
        with self._lock:
            newest = self._newest.get(request_id)
            if session in self._over or (newest is not None and epoch < newest):
                raise Fenced(f"epoch {tuple(epoch)} of request {request_id} is stale: {newest} came later")
            if not self._open:
                raise Draining("this instance takes no new requests")
            older = self._here.get(request_id)
            if older is not None and epoch == newest:
                raise Fenced(f"request {request_id} is on its way here already")
            if older is None and len(self._here) >= self._most:
                raise Overloaded(
                    f"{self._most} movements come in already: try later or raise transfer.max_sessions"
                )
            _remember(self._newest, request_id, epoch)
            self._here[request_id] = session, cancel
        if older is not None:
            older[1](lambda: None)

    def close(self) -> None:
        """Let nobody in any more; who is on the way in may come."""
        with self._lock:
            self._open = False

    def open(self) -> None:
        """Let in again."""
        with self._lock:
            self._open = True

    def leave(self, session: str, request_id: str, *, expired: bool = False) -> None:
        with self._lock:
            self.expired += expired
            _remember(self._over, session, None)
            here = self._here.get(request_id)
            if here is not None and here[0] == session:
                del self._here[request_id]

    def cancel(self, request_id: str, then: Callable[[], None]) -> bool:
        """End a request's movement, then call `then`; False if it is not on its way in."""
        with self._lock:
            here = self._here.get(request_id)
        return here is not None and here[1](then)


def _remember(known: OrderedDict[str, T], key: str, value: T) -> None:
    known[key] = value
    known.move_to_end(key)
    if len(known) > REMEMBERED:
        known.popitem(last=False)
