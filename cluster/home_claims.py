"""Asks a request's home who owns it, for threads that move KV: the Claim of migration, over gRPC."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping

import grpc

from cluster import control_pb2 as pb
from cluster import control_pb2_grpc
from cluster.rpc import raised
from engine.sequence import Epoch
from migration.wire import epoch_to_wire

HOMES = 64
"""Connections that are kept open."""


class HomeClaims:
    """Callable in any thread but the event loop's own; blocks `timeout` seconds at most."""

    def __init__(self, instance: str, connect: Callable[[str], grpc.aio.Channel], *, timeout: float) -> None:
        self._instance = instance
        self._connect = connect
        self._timeout = timeout
        self._events: asyncio.AbstractEventLoop | None = None
        self._homes: dict[str, grpc.aio.Channel] = {}

    def open(self) -> None:
        """Call in the event loop that will ask."""
        self._events = asyncio.get_running_loop()

    def __call__(self, home: str, request_id: str, epoch: Epoch, lengths: Mapping[int, int]) -> bool:
        """Whether the home grants the epoch to this instance. Raises Overloaded if it does not answer."""
        assert self._events is not None
        asked = pb.ClaimRequest(
            request_id=request_id, instance=self._instance, epoch=epoch_to_wire(epoch), length=lengths
        )
        return asyncio.run_coroutine_threadsafe(self._ask(home, asked), self._events).result()

    async def close(self) -> None:
        homes, self._homes = self._homes, {}
        for channel in homes.values():
            await channel.close()

    async def _ask(self, home: str, asked: pb.ClaimRequest) -> bool:
        channel = self._homes.get(home)
        if channel is None:
            channel = self._homes[home] = self._connect(home)
            if len(self._homes) > HOMES:
                await self._homes.pop(next(iter(self._homes))).close(grace=self._timeout)
        with raised():
            answer = await control_pb2_grpc.HomeStub(channel).Claim(asked, timeout=self._timeout)
        return answer.granted
