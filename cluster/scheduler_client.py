"""A gateway's line to the controller: placements and beats, over connections that outlive no controller."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
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
    reached, once for all who wait.

    To find the controller and to call it are bounded by `timeout` seconds each; Overloaded when it does not
    answer in that time.
    """

    def __init__(self, discover: Discover, token: str, *, timeout: float, tls: Tls | None = None) -> None:
        self._discover = discover
        self._token = token
        self._tls = tls
        self._timeout = timeout
        self._line: _Line | None = None
        self._finding: asyncio.Task[_Line] | None = None
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

    async def migrations(self, request_id: str) -> Sequence[pb.Migration]:
        """The moves of a request that are over. Raises Overloaded when nobody answers."""
        line = await self._connect()
        asked = pb.MigrationsRequest(request_id=request_id)
        with raised():
            answer = await control_pb2_grpc.ControlStub(line.channel).GetMigrations(
                asked, timeout=self._timeout
            )
        return answer.migrations

    async def close(self) -> None:
        """Calls under way are cancelled."""
        if self._finding is not None:
            self._finding.cancel()
            await asyncio.gather(self._finding, return_exceptions=True)
        if self._line is not None:
            await self._line.channel.close()
            self._line = None
        for task in self._closing:
            task.cancel()
        await asyncio.gather(*self._closing, return_exceptions=True)

    async def _connect(self) -> _Line:
        """The line that there is, or that all who are without one wait for; who is cancelled leaves it."""
        if self._line is not None:
            return self._line
        if self._finding is None or self._finding.done():
            self._finding = asyncio.create_task(self._find(), name="find the controller")
            # All who asked may be gone.
            self._finding.add_done_callback(lambda task: task.cancelled() or task.exception())
        return await asyncio.shield(self._finding)

    async def _find(self) -> _Line:
        try:
            async with asyncio.timeout(self._timeout):
                address = await self._discover()
        except Exception as error:  # Ray and Serve have many ways to say that the controller is away
            why = str(error) or type(error).__name__
            raise Overloaded(f"the controller is not there; it is started again ({why})") from error
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
