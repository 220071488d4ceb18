"""The instances that this gateway talks to, by name, and the news of their deaths."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from typing import Protocol


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

    def get(self, name: str) -> Instance:
        if name not in self._known:
            instance = self._connect(name)
            self._known[name] = (
                instance,
                asyncio.create_task(self._watch(name, instance), name=f"watch {name}"),
            )
        return self._known[name][0]

    def greet(self, names: Iterable[str]) -> None:
        """Connect now, so that who comes back when another gateway has died waits for no first call."""
        for name in names:
            self.get(name)

    async def close(self) -> None:
        """Stop watching."""
        tasks = [task for _, task in self._known.values()]
        self._known.clear()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _watch(self, name: str, instance: Instance) -> None:
        reason = "stopped"
        try:
            await instance.lifetime()
        except asyncio.CancelledError:
            raise
        except Exception as error:  # whatever ends the watch, the instance cannot be relied on any more
            reason = str(error) or type(error).__name__
        self._known.pop(name, None)
        self._lost(name, reason)
