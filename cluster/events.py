"""What happened in the cluster, with reasons: the controller's memory for operators."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import AsyncIterator, Callable

from cluster import control_pb2 as pb

logger = logging.getLogger("tandem.controller")

NEXT_TRY = "; the next try is in"
"""What follows it in the reason of a `start_failed` holds while the controller runs."""


class Events:
    """A ring of the last `limit` events; ids count from 1 and never repeat. Belongs to one event loop."""

    def __init__(self, limit: int, *, clock: Callable[[], float] = time.time) -> None:
        self._ring: deque[pb.Event] = deque(maxlen=limit)
        self._clock = clock
        self._last = 0
        self._added = asyncio.Event()

    def add(self, kind: str, subject: str, reason: str) -> None:
        """Remember that `subject` came to `kind`, and why."""
        self._last += 1
        self._ring.append(
            pb.Event(id=self._last, time=self._clock(), kind=kind, subject=subject, reason=reason)
        )
        logger.info("%s %s: %s", subject, kind, reason)
        self._added.set()
        self._added = asyncio.Event()

    def after(self, event_id: int) -> list[pb.Event]:
        """Those still remembered with a larger id, oldest first."""
        return [event for event in self._ring if event.id > event_id]

    async def follow(self, event_id: int) -> AsyncIterator[pb.Event]:
        """All after `event_id`, and those to come, without end."""
        while True:
            added = self._added
            for event in self.after(event_id):
                event_id = event.id
                yield event
            if added is self._added:
                await added.wait()
