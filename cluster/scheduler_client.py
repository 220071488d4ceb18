"""A gateway's line to the controller: placements and beats, over a connection that survives the controller's
restarts."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import grpc

from cluster import control_pb2 as pb
from cluster import control_pb2_grpc
from cluster.rpc import channel, error_from, raised
from engine.errors import CapacityError, Overloaded

Discover = Callable[[], Awaitable[str]]


class SchedulerClient:
    """`discover` gives the controller's host:port; it is asked again whenever the controller cannot be
    reached.

    Each call is bounded by `timeout` seconds and raises Overloaded when the controller does not answer in it.
    """

    def __init__(self, discover: Discover, token: str, *, timeout: float) -> None:
        self._discover = discover
        self._token = token
        self._timeout = timeout
        self._channel: grpc.aio.Channel | None = None
        self._stub: control_pb2_grpc.SchedulerStub | None = None
        self._connecting = asyncio.Lock()

    async def place(self, request: pb.PlaceRequest) -> pb.Placement:
        """Ask where a request runs. Raises what the scheduler refuses it with."""
        stub = await self._connect()
        try:
            with raised():
                answer = await stub.Place(request, timeout=self._timeout)
        except CapacityError:
            await self.close()
            raise
        if answer.HasField("error"):
            raise error_from(answer.error)
        return answer

    async def join(self, gateway: pb.Gateway) -> pb.ClusterStatus:
        """This gateway's beat; gives the state of the cluster."""
        stub = await self._connect()
        try:
            with raised():
                return await stub.Join(gateway, timeout=self._timeout)
        except CapacityError:
            await self.close()
            raise

    async def close(self) -> None:
        """Let go of the connection; the next call makes another."""
        old, self._channel, self._stub = self._channel, None, None
        if old is not None:
            await old.close()

    async def _connect(self) -> control_pb2_grpc.SchedulerStub:
        async with self._connecting:
            if self._stub is None:
                try:
                    async with asyncio.timeout(self._timeout):
                        address = await self._discover()
                except Exception as error:  # Ray and Serve have many ways to say that the controller is away
                    raise Overloaded(f"the controller is not there; it is started again ({error})") from error
                self._channel = channel(address, self._token)
                self._stub = control_pb2_grpc.SchedulerStub(self._channel)
            return self._stub
