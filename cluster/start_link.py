"""The instance's end of Home.Starts: takes requests from a gateway and answers each when it is in the queue.

It is opened when a gateway has started a request here by an actor call, and lasts as long as that gateway;
who has no stream here any more starts its next request by an actor call again.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from concurrent.futures import Future
from typing import TypeAlias

import grpc

from cluster import control_pb2 as pb
from cluster import control_pb2_grpc
from cluster.rpc import error_message
from cluster.start_calls import BROKEN
from engine.errors import TandemError

logger = logging.getLogger("tandem.instance")

Start = Callable[[bytes], "Future[None]"]
Call: TypeAlias = "grpc.aio.StreamStreamCall[pb.StartAnswer, pb.StartCall]"

ASK_AGAIN = 60.0
"""Seconds until a home is asked again whether it has such a call: its address may be another's by now."""


class StartLinks:
    """One stream for each home. `start` runs a pb Start; its future, or itself, fails with why not."""

    def __init__(self, instance: str, connect: Callable[[str], grpc.aio.Channel], start: Start) -> None:
        self._instance = instance
        self._connect = connect
        self._start = start
        self._links: dict[str, asyncio.Task[None]] = {}
        self._without: dict[str, float] = {}
        """Homes that had no such call when they were asked, and when that was."""

    def link(self, home: str) -> None:
        """Have a stream to this home; call in the event loop."""
        asked = self._without.get(home)
        if home in self._links or (asked is not None and time.monotonic() - asked < ASK_AGAIN):
            return
        task = asyncio.create_task(self._run(home), name=f"starts of {home}")
        self._links[home] = task
        task.add_done_callback(lambda _: self._links.pop(home, None))

    async def close(self) -> None:
        """Take no more starts."""
        tasks = list(self._links.values())
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)

    async def _run(self, home: str) -> None:
        self._without.pop(home, None)
        try:
            async with self._connect(home) as channel:
                await self._serve(control_pb2_grpc.HomeStub(channel).Starts())
        except grpc.aio.AioRpcError as error:
            if error.code() is grpc.StatusCode.UNIMPLEMENTED:  # a gateway of an older version
                self._without[home] = time.monotonic()
        except BROKEN:
            pass

    async def _serve(self, call: Call) -> None:
        answers: asyncio.Queue[pb.StartAnswer] = asyncio.Queue()
        await call.write(pb.StartAnswer(instance=self._instance))
        tasks = [asyncio.create_task(self._read(call, answers)), asyncio.create_task(_write(call, answers))]
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            call.cancel()
            for task in tasks:
                task.cancel()
            ended = await asyncio.gather(*tasks, return_exceptions=True)
        for error in ended:
            if isinstance(error, Exception):
                raise error

    async def _read(self, call: Call, answers: asyncio.Queue[pb.StartAnswer]) -> None:
        async for asked in call:
            self._take(asked, answers)

    def _take(self, asked: pb.StartCall, answers: asyncio.Queue[pb.StartAnswer]) -> None:
        events = asyncio.get_running_loop()

        def done(future: Future[None]) -> None:
            answer = _answer(asked.number, future.exception())
            if not events.is_closed():
                events.call_soon_threadsafe(answers.put_nowait, answer)

        try:
            future = self._start(asked.start)
        except Exception as error:
            answers.put_nowait(_answer(asked.number, error))
        else:
            future.add_done_callback(done)


async def _write(call: Call, answers: asyncio.Queue[pb.StartAnswer]) -> None:
    while True:
        await call.write(await answers.get())


def _answer(number: int, error: BaseException | None) -> pb.StartAnswer:
    answer = pb.StartAnswer(number=number)
    if isinstance(error, TandemError):
        answer.error.CopyFrom(error_message(error))
    elif error is not None:
        logger.error("a request could not be started", exc_info=error)
        answer.error.CopyFrom(error_message(TandemError(f"it failed in start: {error}")))
    return answer
