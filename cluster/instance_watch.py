"""The instances that this gateway talks to, by name, and the news of their deaths."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable
from typing import Protocol

from engine.errors import InstanceDied

LATELY = 10.0
"""Seconds that a scheduler may take, at most, to hear of the death of an instance that is known here."""


class Instance(Protocol):
    """What a request driver asks of an instance. `lifetime` pends until it dies, then raises."""

    async def start(self, start: bytes) -> None: ...

    async def cancel(self, request_id: str) -> None: ...

    async def take(self, name: str, digest: str) -> bytes: ...

    async def lifetime(self) -> None: ...


class Instances:
    """Connections by name, watched from when they are made: at first use, or before.

    `lost` is told the name and the reason of a death.
    """

    def __init__(self, connect: Callable[[str], Instance], lost: Callable[[str, str], None]) -> None:
        self._connect = connect
        self._lost = lost
        self._known: dict[str, tuple[Instance, asyncio.Task[None]]] = {}
        self._ended: dict[str, float] = {}

    def get(self, name: str) -> Instance:
        if name not in self._known:
            instance = self._connect(name)
            self._known[name] = (
                instance,
                asyncio.create_task(self._watch(name, instance), name=f"watch {name}"),
            )
        return self._known[name][0]

    def known(self) -> list[str]:
        """Those that are watched, and have not ended as far as is known."""
        return list(self._known)

    def died(self) -> frozenset[str]:
        """Those that died lately: who does not know it yet may still name them."""
        now = time.monotonic()
        self._ended = {name: when for name, when in self._ended.items() if now - when < LATELY}
        return frozenset(self._ended)

    def greet(self, names: Iterable[str]) -> None:
        """Connect now, so that who comes back when another gateway has died waits for no first call."""
        died = self.died()
        for name in names:
            if name not in died:
                self.get(name)

    async def close(self) -> None:
        """Stop watching."""
        tasks = [task for _, task in self._known.values()]
        self._known.clear()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _watch(self, name: str, instance: Instance) -> None:
        reason, died = "stopped", True
        try:
            await instance.lifetime()
        except asyncio.CancelledError:
            raise
        except Exception as error:  # whatever ends the watch, the instance cannot be relied on any more
            reason, died = str(error) or type(error).__name__, isinstance(error, InstanceDied)
        self._known.pop(name, None)
        if died:
            self._ended[name] = time.monotonic()
        self._lost(name, reason)
