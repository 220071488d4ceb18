"""Evens out the load: asks the policy which instances should trade, and has a request moved for each pair.

every rebalance_period: loads ─▶ Rescheduler.decide ─▶ Move(from, to) ─▶ choose(request) ─▶ Mover
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import Mapping

from cluster import control_pb2 as pb
from cluster.config_scheduler import SchedulerConfig
from cluster.member import Member
from cluster.mover import Mover
from engine.errors import TandemError
from global_scheduler.rescheduling import Movable, Move, Rescheduler, ReschedulingSettings, choose
from global_scheduler.scheduler import Scheduler

logger = logging.getLogger("tandem.controller")

CAUSE = "rebalance"


class Rebalancer:
    """Runs in the controller's event loop: `run` until it is cancelled."""

    def __init__(
        self, config: SchedulerConfig, scheduler: Scheduler, mover: Mover, members: Mapping[str, Member]
    ) -> None:
        self._period = config.rebalance_period
        self._settings = ReschedulingSettings(
            low=config.crowded_below, high=config.roomy_above, rest=config.rest
        )
        self._rescheduler = Rescheduler(self._settings)
        self._scheduler = scheduler
        self._mover = mover
        self._members = members
        self._came: dict[str, float] = {}

    async def run(self) -> None:
        """Round after round: the moves of one are over before the next looks at the loads."""
        while True:
            await asyncio.sleep(self._period)
            now = time.monotonic()
            moves = self._rescheduler.decide(self._scheduler.view.loads(now), now)
            await asyncio.gather(*map(self._carry_out, moves))

    async def _carry_out(self, move: Move) -> None:
        source, destination = self._members.get(move.source), self._members.get(move.destination)
        if source is None or destination is None:
            return
        try:
            requests = await self._mover.requests([source])
            now = time.monotonic()
            self._came = {key: at for key, at in self._came.items() if at + self._settings.rest > now}
            chosen = self._choose(requests, move, now)
            if chosen is not None:
                moved = await self._mover.move(chosen, destination, CAUSE, move.reason)
                self._came[moved.request_id] = time.monotonic()
        except TandemError as error:
            logger.debug("%s gave nothing: %s", move.source, error)

    def _choose(self, requests: list[pb.RunningRequest], move: Move, now: float) -> pb.RunningRequest | None:
        movable = [
            Movable(
                one.id,
                one.prompt_tokens + one.output_tokens,
                one.priority,
                self._came.get(one.id, -math.inf),
                waiting=one.phase == "waiting",
            )
            for one in requests
            if one.phase in ("decode", "waiting") and not one.moving
        ]
        wanted = choose(movable, self._settings, now, largest=move.largest, leaving=False)
        return next((one for one in requests if one.id == wanted), None)
