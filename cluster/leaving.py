"""Asks gateways whose machine is about to end to take nothing more, and to say when they are done."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable

from cluster import control_pb2 as pb
from cluster import control_pb2_grpc, rpc
from cluster.tls import Tls

ANSWER = 5.0
"""Seconds that an answer may take beyond the time that was given."""


async def leave(
    gateways: Iterable[pb.Gateway], token: str, within: float, tls: Tls | None = None
) -> dict[str, int]:
    """By name, how many requests each still has when it has ended them all, or `within` seconds are over.

    Raises Overloaded where one does not answer, InvalidKey for a wrong token.
    """

    async def ask(gateway: pb.Gateway) -> tuple[str, int]:
        async with rpc.channel(gateway.home, token, tls) as channel:
            with rpc.raised():
                asked = pb.LeaveRequest(within=within)
                reply: pb.LeaveReply = await control_pb2_grpc.HomeStub(channel).Leave(
                    asked, timeout=within + ANSWER
                )
        return gateway.name, reply.requests

    return dict(await asyncio.gather(*map(ask, gateways)))
