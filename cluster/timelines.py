"""The timelines of a gateway's requests, under way and lately ended; and who asks all gateways for theirs."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable

import grpc

from cluster import control_pb2 as pb
from cluster import control_pb2_grpc, rpc
from cluster.migrations import names
from cluster.timeline import Timeline
from cluster.tls import Tls

logger = logging.getLogger("tandem.controller")

ASK_TIMEOUT = 2.0
"""Seconds that a gateway may take to tell; without an answer the others have to do."""

MOST_TOLD = 1000


class Timelines:
    """At a gateway: remembers the last `limit` that ended. Belongs to one event loop."""

    def __init__(self, limit: int = 1000) -> None:
        self.gateway = ""
        self._limit = limit
        self._known: OrderedDict[str, Timeline] = OrderedDict()
        self._live: dict[str, Timeline] = {}

    def open(self, timeline: Timeline) -> Timeline:
        self._live[timeline.id] = timeline
        return timeline

    def close(self, timeline: Timeline) -> None:
        """It has ended: from now on it counts for the limit."""
        if self._live.pop(timeline.id, None) is None:
            return
        self._known[timeline.id] = timeline
        while len(self._known) > self._limit:
            self._known.popitem(last=False)

    def __len__(self) -> int:
        return len(self._live) + len(self._known)

    def find(self, wanted: str, most: int = 0) -> list[pb.Timeline]:
        """Those of an id or a client's name, or the latest; the newest first."""
        now, offset = time.monotonic(), time.time() - time.monotonic()
        latest = [*reversed(self._live.values()), *reversed(self._known.values())]
        found = [one for one in latest if not wanted or names(one.id, wanted)]
        return [one.message(self.gateway, now, offset) for one in found[: most or MOST_TOLD]]


class TimelineFinder:
    """At the controller: asks every gateway. `gateways` gives those that are there."""

    def __init__(self, gateways: Callable[[], Iterable[pb.Gateway]], token: str, tls: Tls | None) -> None:
        self._gateways = gateways
        self._token = token
        self._tls = tls
        self._channels: dict[str, grpc.aio.Channel] = {}

    async def find(self, wanted: str, most: int = 0) -> list[pb.Timeline]:
        """What all gateways have, the newest first; one that does not answer has nothing to tell."""
        homes = [gateway.home for gateway in self._gateways()]
        for gone in self._channels.keys() - set(homes):
            await self._channels.pop(gone).close()
        asked = pb.TimelinesRequest(id=wanted, most=most)
        answers = await asyncio.gather(*(self._ask(home, asked) for home in homes))
        found = sorted((one for answer in answers for one in answer), key=lambda one: -one.began)
        return found[: most or MOST_TOLD]

    async def close(self) -> None:
        for channel in self._channels.values():
            await channel.close()
        self._channels.clear()

    async def _ask(self, home: str, asked: pb.TimelinesRequest) -> list[pb.Timeline]:
        if home not in self._channels:
            self._channels[home] = rpc.channel(home, self._token, self._tls)
        stub = control_pb2_grpc.HomeStub(self._channels[home])
        try:
            answer = await stub.Describe(asked, timeout=ASK_TIMEOUT)
        except grpc.aio.AioRpcError as error:
            # Another one is shown the certificate of today.
            await self._channels.pop(home).close()
            logger.debug("the gateway at %s does not tell its timelines: %s", home, error.code())
            return []
        return list(answer.timelines)
