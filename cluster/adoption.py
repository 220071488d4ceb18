"""Instances that an earlier controller left: each is asked for its memo and its role.

    asked ─┬─ answers ─▶ taken up
           ├─ slow, or out of reach ─▶ late: asked again ─┬─ answers ─▶ taken up then
           │                                              └─ silent ──▶ killed
           └─ dead, or with what is no memo ─▶ killed

Requests run on a late one as on any other, so the time of one call is too short to give it up.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Protocol

from cluster.config import ControlConfig
from cluster.member import Handle
from cluster.memo import Memo
from cluster.pool import killed, patiently
from engine.errors import TandemError

logger = logging.getLogger("tandem.controller")


class FoundHandle(Handle, Protocol):
    name: str

    async def memo(self) -> tuple[bytes, str]: ...


@dataclass(frozen=True, slots=True)
class Found:
    """An instance that has answered."""

    handle: FoundHandle
    memo: Memo
    role: str


class Adoption:
    """Asks at once, in one event loop. `late` are the names of those that nobody has been told of yet."""

    def __init__(self, config: ControlConfig, handles: Sequence[FoundHandle] = ()) -> None:
        self._config = config
        self._asked: dict[str, asyncio.Task[Found | None]] = {}
        self.late: set[str] = set()
        self.ask(handles)

    def ask(self, handles: Sequence[FoundHandle]) -> None:
        """Ask these too, those that have not been."""
        for handle in handles:
            if handle.name not in self._asked:
                self._asked[handle.name] = asyncio.create_task(self._ask(handle))
                self.late.add(handle.name)

    async def memos(self) -> list[Memo]:
        """Of those that answer within `call_timeout`; where none does, of the first that does later."""
        try:
            if self._asked:
                await asyncio.wait(self._asked.values(), timeout=self._config.call_timeout)
            while not (found := self._found()) and (pending := self._pending()):
                await asyncio.wait(pending, return_when=asyncio.FIRST_COMPLETED)
            return [one.memo for one in found]
        except BaseException:
            await self.close()
            raise

    def tell(self, settled: Callable[[Found | None], None]) -> None:
        """Tell of each that has answered, now, and of each late one when it has; None of one that was killed.

        For the late ones exceptions of `settled` go to the event loop.
        """
        for name, task in self._asked.items():
            if task.done():
                self._settle(name, settled, task)
            else:
                task.add_done_callback(partial(self._settle, name, settled))

    async def close(self) -> None:
        """Ask no more; nobody is killed for it."""
        for task in self._asked.values():
            task.cancel()
        await asyncio.gather(*self._asked.values(), return_exceptions=True)

    def _settle(
        self, name: str, settled: Callable[[Found | None], None], task: asyncio.Task[Found | None]
    ) -> None:
        try:
            if not task.cancelled():
                settled(task.result())
        finally:
            self.late.discard(name)

    def _pending(self) -> list[asyncio.Task[Found | None]]:
        return [task for task in self._asked.values() if not task.done()]

    def _found(self) -> list[Found]:
        results = [task.result() for task in self._asked.values() if task.done()]
        return [found for found in results if found is not None]

    async def _ask(self, handle: FoundHandle) -> Found | None:
        try:
            memo, role = await patiently(handle.memo, self._config)
            return Found(handle, Memo.from_bytes(memo), role)
        except (TandemError, ValueError) as error:
            logger.warning("%s, which was found, does not answer and is killed: %s", handle.name, error)
            await killed(handle)
            return None
