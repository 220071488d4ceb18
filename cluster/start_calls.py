"""Starts that a gateway sends over a stream that the instance has opened, instead of by an actor call.

    driver ─ start ─▶ LinkedInstance ─┬─ StartCalls ══ Home.Starts ══▶ StartLink of the instance
                                      └─ no such stream yet: actor call

An actor call takes one to two milliseconds one way, a message on a stream a third of one: all of it is time
to first token.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from itertools import count
from typing import TypeAlias

import grpc

from cluster import control_pb2 as pb
from cluster.instance_handle import InstanceHandle
from cluster.rpc import error_from
from engine.errors import InstanceDied, Overloaded

Context: TypeAlias = "grpc.aio.ServicerContext[pb.StartAnswer, pb.StartCall]"


class StartCalls:
    """The streams of a gateway's instances, by their names."""

    def __init__(self) -> None:
        self._streams: dict[str, _Stream] = {}

    async def serve(self, answers: AsyncIterator[pb.StartAnswer], context: Context) -> None:
        """One instance's stream, until it ends. A newer one of the same instance takes its place."""
        name, stream = "", _Stream(context)
        try:
            async for answer in answers:
                if not name:
                    name = answer.instance
                    self._streams[name] = stream
                else:
                    stream.answered(answer)
        finally:
            if self._streams.get(name) is stream:
                del self._streams[name]
            stream.broken()

    def has(self, name: str) -> bool:
        """Whether the instance has opened a stream."""
        return name in self._streams

    async def start(self, name: str, start: bytes) -> None:
        """Run a request: a pb Start; `has` must say so. Raises what the instance refuses it with, and
        InstanceDied when the stream ends before it has answered."""
        try:
            await self._streams[name].start(start)
        except ConnectionError:
            raise InstanceDied(f"the connection of {name} broke before it took the request") from None


class _Stream:
    def __init__(self, context: Context) -> None:
        self._context = context
        self._numbers = count(1)
        self._asked: dict[int, asyncio.Future[pb.StartAnswer]] = {}
        self._turn = asyncio.Lock()
        self._over = False

    async def start(self, start: bytes) -> None:
        number = next(self._numbers)
        answer = self._asked[number] = asyncio.get_running_loop().create_future()
        try:
            # A write that is cancelled would end the whole stream.
            await asyncio.shield(self._send(pb.StartCall(number=number, start=start)))
            error = (await answer).error
        finally:
            self._asked.pop(number, None)
        if error.code:
            raise error_from(error)

    def answered(self, answer: pb.StartAnswer) -> None:
        asked = self._asked.get(answer.number)
        if asked is not None and not asked.done():
            asked.set_result(answer)

    def broken(self) -> None:
        self._over = True
        for asked in self._asked.values():
            if not asked.done():
                asked.set_exception(ConnectionError())

    async def _send(self, call: pb.StartCall) -> None:
        async with self._turn:
            try:
                if not self._over:
                    await self._context.write(call)
            except (grpc.RpcError, asyncio.InvalidStateError, grpc.aio.UsageError):
                self._over = True
        if self._over:
            self.broken()


class LinkedInstance(InstanceHandle):
    """An instance whose starts go over its stream where it has opened one; all else is an actor call."""

    def __init__(self, name: str, calls: StartCalls, *, timeout: float) -> None:
        super().__init__(name, timeout=timeout)
        self._calls = calls

    async def start(self, start: bytes) -> None:
        if not self._calls.has(self.name):
            await super().start(start)
            return
        try:
            async with asyncio.timeout(self._timeout):
                await self._calls.start(self.name, start)
        except TimeoutError:
            raise Overloaded(f"instance {self.name} did not answer start in time") from None
