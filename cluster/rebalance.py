"""Evens out the load: asks the policy which instances should trade, and has a request moved for each pair.

every rebalance_period, and when it is asked for:

    loads ─▶ Rescheduler.decide ─▶ Move(from, to) ─▶ choose(request) ─▶ Mover
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import Mapping

from cluster import control_pb2 as pb
from cluster.config import Config
from cluster.member import Member
from cluster.mover import Mover
from cluster.policies import rescheduling_settings
from engine.errors import TandemError
from global_scheduler.rescheduling import Movable, Move, Rescheduler, choose
from global_scheduler.scheduler import Scheduler

logger = logging.getLogger("tandem.controller")

CAUSE = "rebalance"


class Rebalancer:
    """Runs in the controller's event loop: `run` until it is cancelled."""

    def __init__(
        self, config: Config, scheduler: Scheduler, mover: Mover, members: Mapping[str, Member]
    ) -> None:
        self._period = config.scheduler.rebalance_period
        self._settings = rescheduling_settings(config)
        self._rescheduler = Rescheduler(self._settings)
        self._scheduler = scheduler
        self._mover = mover
        self._members = members
        self._came: dict[str, float] = {}
        self._turn = asyncio.Lock()

    async def run(self) -> None:
        """Round after round."""
        while True:
            await asyncio.sleep(self._period)
            await self.round()

    async def round(self) -> pb.RebalanceReply:
        """Gives the moves with their outcome: they are over before another round looks at the loads."""
        async with self._turn:
            now = time.monotonic()
            moves = self._rescheduler.decide(self._scheduler.view.loads(now), now)
            moved = await asyncio.gather(*map(self._carry_out, moves))
        return self._told(moves, [one for one in moved if one is not None])

    async def planned(self) -> pb.RebalanceReply:
        """The moves that a round would make now; makes none."""
        now = time.monotonic()
        moves = self._rescheduler.plan(self._scheduler.view.loads(now), now)
        found = await asyncio.gather(*map(self._chosen, moves))
        would = [
            pb.Migration(
                request_id=one.id,
                source=move.source,
                destination=move.destination,
                cause=CAUSE,
                reason=move.reason,
                tokens=one.prompt_tokens + one.output_tokens,
                blocks=one.blocks,
            )
            for move, one in zip(moves, found, strict=True)
            if one is not None
        ]
        return self._told(moves, would)

    def _told(self, moves: list[Move], made: list[pb.Migration]) -> pb.RebalanceReply:
        """With the reason, where there is none."""
        low, high = self._settings.low, self._settings.high
        reason = ""
        if moves and not made:
            givers = ", ".join(move.source for move in moves)
            reason = (
                f"nothing on {givers} may move: it came lately, is in prefill or moves already, "
                "or the instance did not answer"
            )
        elif not moves:
            reason = (
                f"no instance with two requests has fewer than {low:g} free blocks for each "
                f"while another of its role has more than {high:g}"
            )
        return pb.RebalanceReply(moves=made, reason=reason)

    async def _carry_out(self, move: Move) -> pb.Migration | None:
        chosen, destination = await self._chosen(move), self._members.get(move.destination)
        if chosen is None or destination is None:
            return None
        try:
            moved = await self._mover.move(chosen, destination, CAUSE, move.reason)
        except TandemError as error:
            logger.debug("%s gave nothing: %s", move.source, error)
            return None
        self._came[moved.request_id] = time.monotonic()
        return moved

    async def _chosen(self, move: Move) -> pb.RunningRequest | None:
        """The request that goes; None where the instance has none that may."""
        source = self._members.get(move.source)
        if source is None or move.destination not in self._members:
            return None
        try:
            requests = await self._mover.requests([source])
        except TandemError as error:
            logger.debug("%s gave nothing: %s", move.source, error)
            return None
        now = time.monotonic()
        self._came = {key: at for key, at in self._came.items() if at + self._settings.rest > now}
        return self._choose(requests, move, now)

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
