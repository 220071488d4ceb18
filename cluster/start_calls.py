"""Starts that a gateway sends over a stream that the instance has opened, instead of by an actor call.

    driver ─ start ─▶ LinkedInstance ─┬─ StartCalls ══ Home.Starts ══▶ StartLink of the instance
                                      └─ no such stream: actor call, after which the instance opens one

An actor call takes a millisecond longer, all of it time to first token.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from itertools import count
from typing import TypeAlias

import grpc

from cluster import control_pb2 as pb
from cluster.instance_handle import InstanceHandle
from cluster.rpc import error_from
from engine.errors import Overloaded

logger = logging.getLogger("tandem.gateway")

Context: TypeAlias = "grpc.aio.ServicerContext[pb.StartAnswer, pb.StartCall]"

BROKEN = grpc.aio.BaseError, grpc.RpcError, asyncio.InvalidStateError
"""What gRPC raises at either end of a stream that has ended."""


class StartCalls:
    """The streams of a gateway's instances, by their names."""

    def __init__(self) -> None:
        self._streams: dict[str, _Stream] = {}

    async def serve(self, answers: AsyncIterator[pb.StartAnswer], context: Context) -> None:
        """One instance's stream, until it ends. A newer one of the same instance takes its place."""
        stream = _Stream()
        tasks = [
            asyncio.create_task(self._read(answers, stream)),
            asyncio.create_task(stream.write(context)),
            asyncio.create_task(stream.over.wait()),
        ]
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            self._forget(stream)
            for task in tasks:
                task.cancel()
            for ended in await asyncio.gather(*tasks, return_exceptions=True):
                if isinstance(ended, Exception) and not isinstance(ended, BROKEN):
                    logger.error("starts of %s ended", stream.instance, exc_info=ended)

    def has(self, name: str) -> bool:
        """Whether the instance has a stream."""
        return name in self._streams

    async def start(self, name: str, start: bytes, within: float) -> None:
        """Run a request: a pb Start; `has` must say so. Raises what the instance refuses it with.

        Raises Overloaded when there is no answer `within` so many seconds, which ends the stream, or when the
        stream ends before: the instance may have the request then, of an attempt that is over.
        """
        stream = self._streams[name]
        try:
            async with asyncio.timeout(within):
                await stream.start(start)
        except TimeoutError:
            self._forget(stream)
            raise Overloaded(f"instance {name} did not answer start in time") from None

    async def _read(self, answers: AsyncIterator[pb.StartAnswer], stream: _Stream) -> None:
        async for answer in answers:
            if stream.instance:
                stream.answered(answer)
            else:
                stream.instance = answer.instance
                self._streams[answer.instance] = stream

    def _forget(self, stream: _Stream) -> None:
        if self._streams.get(stream.instance) is stream:
            del self._streams[stream.instance]
        stream.end()


class _Stream:
    """`instance` is "" until the other end has said whose it is; `over` is set when it has ended."""

    def __init__(self) -> None:
        self.instance = ""
        self.over = asyncio.Event()
        self._numbers = count(1)
        self._asked: dict[int, asyncio.Future[pb.StartAnswer]] = {}
        self._calls: asyncio.Queue[pb.StartCall] = asyncio.Queue()

    async def start(self, start: bytes) -> None:
        number = next(self._numbers)
        answer = self._asked[number] = asyncio.get_running_loop().create_future()
        self._calls.put_nowait(pb.StartCall(number=number, start=start))
        try:
            error = (await answer).error
        finally:
            del self._asked[number]
        if error.code:
            raise error_from(error)

    async def write(self, context: Context) -> None:
        """Send what is asked, but for what was given up meanwhile."""
        while True:
            call = await self._calls.get()
            if call.number in self._asked:
                await context.write(call)

    def answered(self, answer: pb.StartAnswer) -> None:
        asked = self._asked.get(answer.number)
        if asked is not None and not asked.done():
            asked.set_result(answer)

    def end(self) -> None:
        """Nothing more will be answered."""
        self.over.set()
        for asked in self._asked.values():
            if not asked.done():
                asked.set_exception(
                    Overloaded(f"the connection of {self.instance} broke before it answered start")
                )


class LinkedInstance(InstanceHandle):
    """An instance whose starts go over its stream where it has one; all else is an actor call."""

    def __init__(self, name: str, calls: StartCalls, *, timeout: float) -> None:
        super().__init__(name, timeout=timeout)
        self._calls = calls

    async def start(self, start: bytes) -> None:
        if self._calls.has(self.name):
            await self._calls.start(self.name, start, self._timeout)
        else:
            await super().start(start)
