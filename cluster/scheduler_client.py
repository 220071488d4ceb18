"""A gateway's line to the controller: placements and beats, over connections that outlive no controller."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

import grpc

from cluster import control_pb2 as pb
from cluster import control_pb2_grpc
from cluster.rpc import channel, error_from, raised
from cluster.tls import Tls
from engine.errors import CapacityError, Overloaded

Discover = Callable[[], Awaitable[str]]


@dataclass(frozen=True, slots=True)
class _Line:
    channel: grpc.aio.Channel
    stub: control_pb2_grpc.SchedulerStub


class SchedulerClient:
    """`discover` gives the controller's host:port; it is asked again when the controller could not be
    reached.

    Each call is bounded by `timeout` seconds and raises Overloaded when the controller does not answer in it.
    """

    def __init__(self, discover: Discover, token: str, *, timeout: float, tls: Tls | None = None) -> None:
        self._discover = discover
        self._token = token
        self._tls = tls
        self._timeout = timeout
        self._line: _Line | None = None
        self._connecting = asyncio.Lock()
        self._closing: set[asyncio.Task[None]] = set()

    async def place(self, request: pb.PlaceRequest) -> pb.Placement:
        """Ask where a request runs. Raises what the scheduler refuses it with."""
        line = await self._connect()
        try:
            with raised():
                answer = await line.stub.Place(request, timeout=self._timeout)
        except CapacityError:
            self._drop(line)
            raise
        if answer.HasField("error"):
            raise error_from(answer.error)
        return answer

    async def join(self, gateway: pb.Gateway) -> pb.ClusterStatus:
        """This gateway's beat; gives the state of the cluster."""
        line = await self._connect()
        try:
            with raised():
                return await line.stub.Join(gateway, timeout=self._timeout)
        except CapacityError:
            self._drop(line)
            raise

    async def close(self) -> None:
        """Calls under way are cancelled."""
        if self._line is not None:
            await self._line.channel.close()
            self._line = None
        for task in self._closing:
            task.cancel()
        await asyncio.gather(*self._closing, return_exceptions=True)

    async def _connect(self) -> _Line:
        async with self._connecting:
            if self._line is None:
                try:
                    async with asyncio.timeout(self._timeout):
                        address = await self._discover()
                except Exception as error:  # Ray and Serve have many ways to say that the controller is away
                    raise Overloaded(f"the controller is not there; it is started again ({error})") from error
                line = channel(address, self._token, self._tls)
                self._line = _Line(line, control_pb2_grpc.SchedulerStub(line))
            return self._line

    def _drop(self, line: _Line) -> None:
        """The next call makes another connection. Others may still wait for answers over this one: they time
        out.

        To close it at once would cancel them, which their callers would take for their own end.
        """
        if self._line is line:
            self._line = None
            task = asyncio.create_task(line.channel.close(grace=self._timeout))
            self._closing.add(task)
            task.add_done_callback(self._closing.discard)
