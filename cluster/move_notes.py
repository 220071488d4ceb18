"""What the controller knows of a request's moves, asked for its trace when it has been answered.

source instance ─ what came of the move ─▶ controller ◀─ moves of this request? ─ gateway ─▶ spans
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from typing import Any

from cluster import control_pb2 as pb
from cluster.arrival import Arrival
from cluster.timeline import MIGRATE
from migration.moved import COMMITTED

logger = logging.getLogger("tandem.gateway")

ASK_TIMEOUT = 2.0
PAUSE = 0.5
"""Seconds after which the controller is asked once more for a move that it has not heard of yet."""
AT_ONCE = 4
"""Questions on their way to the controller: a move elsewhere is reason to ask of every request under way."""
MOST = 64
"""Requests that wait for their moves; more have traces without. None waits longer than
two ASK_TIMEOUT and a PAUSE, whatever the controller does."""


class MoveNotes:
    """`ask` gives a request's moves that are over; `count` how many there were of all, by the last status."""

    def __init__(
        self, ask: Callable[[str], Awaitable[Sequence[pb.Migration]]], count: Callable[[], int]
    ) -> None:
        self._ask = ask
        self.count = count
        self._tasks: set[asyncio.Task[None]] = set()
        self._turn = asyncio.Semaphore(AT_ONCE)

    def later(self, work: Coroutine[Any, Any, None]) -> None:
        """Do something that needs the answers, while nobody waits."""
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def close(self) -> None:
        """Wait for what is still to be done, which takes seconds at most."""
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def worth_asking(self, arrival: Arrival, before: int) -> bool:
        """Whether a request may have been moved, or somebody tried: `before` is the count when it came.

        Not where too many wait already.
        """
        if len(self._tasks) >= MOST:
            return False
        return bool(_moves(arrival)) or (bool(arrival.timelines) and self.count() != before)

    async def find(self, arrival: Arrival) -> dict[str, list[pb.Migration]]:
        """By request; nothing where the controller does not answer in time. Never raises."""
        found = await self._find(arrival)
        committed = sum(one.outcome == COMMITTED for moves in found.values() for one in moves)
        if committed < _moves(arrival):
            await asyncio.sleep(PAUSE)
            found = await self._find(arrival)
        return found

    async def _find(self, arrival: Arrival) -> dict[str, list[pb.Migration]]:
        found: dict[str, list[pb.Migration]] = {}
        try:
            async with asyncio.timeout(ASK_TIMEOUT):
                for timeline in arrival.timelines:
                    async with self._turn:
                        found[timeline.id] = list(await self._ask(timeline.id))
        except Exception as error:  # whatever is wrong with the controller, the trace goes without
            logger.debug("moves cannot be told: %s", error)
        return found


def _moves(arrival: Arrival) -> int:
    return sum(phase.name == MIGRATE for timeline in arrival.timelines for phase in timeline.phases)
