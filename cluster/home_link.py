"""The connection from an instance to one home: batches go out in order and are kept until answered.

An answer costs both ends as much as a batch, so most batches are quiet: they ask for none, and one answer
stands for all before it. Those ask that end a choice, every eighth, and an empty one when nothing more comes.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections import deque
from collections.abc import Callable

import grpc

from cluster import control_pb2 as pb
from cluster import control_pb2_grpc
from engine.sequence import Epoch

logger = logging.getLogger("tandem.instance")

Connect = Callable[[str], grpc.aio.Channel]
Fenced = Callable[[str, Epoch], None]
GivenUp = Callable[[str], None]

FOREVER = Epoch(2**32 - 1, 0)
"""Newer than any epoch: the home does not know the request, or will never know it again."""

_WINDOW = 64
_ANSWERED = 8
_MOST_PENDING = 65_536
_IDLE = 30.0


class HomeLink:
    """Sends messages to `home`; ends by itself when idle. `fenced` is told of what is not wanted there.

    At most `_WINDOW` batches are unanswered; what comes meanwhile is put into the next one. If the home
    cannot be reached for `lease` seconds, or more than `_MOST_PENDING` messages wait for it, it is given up:
    `given_up` is told, and the link ends.
    """

    def __init__(
        self,
        instance: str,
        home: str,
        connect: Connect,
        fenced: Fenced,
        given_up: GivenUp,
        *,
        lease: float,
    ) -> None:
        self._instance = instance
        self._home = home
        self._connect = connect
        self._fenced = fenced
        self._given_up = given_up
        self._lease = lease
        # So that each of a window's batches is answered well within the lease.
        self._settled = min(1.0, lease / 16)
        self._pending: list[pb.Tokens] = []
        self._unanswered: deque[pb.TokenBatch] = deque()
        self._changed = asyncio.Event()
        self._closing = False
        self._replies = 0
        self._task = asyncio.create_task(self._run(), name=f"push to {home}")

    @property
    def done(self) -> bool:
        return self._task.done()

    def send(self, messages: list[pb.Tokens]) -> None:
        self._pending.extend(messages)
        self._changed.set()

    async def close(self) -> None:
        self._closing = True
        self._changed.set()
        _, late = await asyncio.wait([self._task], timeout=1.0)
        for task in late:
            task.cancel()
        await asyncio.wait([self._task])

    async def _run(self) -> None:
        silent_since = time.monotonic()
        pause = 0.01
        while True:
            answered = False
            try:
                async with self._connect(self._home) as channel:
                    answered = await self._talk(channel)
            except Exception:
                logger.exception("the connection to %s failed", self._home)
            if not self._pending and not self._unanswered:
                return
            now = time.monotonic()
            if len(self._pending) > _MOST_PENDING:
                self._give_up()
                return
            if answered:
                silent_since, pause = now, 0.01
            if self._closing or now - silent_since > self._lease:
                self._give_up()
                return
            await asyncio.sleep(pause)
            pause = min(1.0, pause * 2)

    async def _talk(self, channel: grpc.aio.Channel) -> bool:
        """One connection, until it breaks or has nothing to do. Whether the home has answered over it."""
        call = control_pb2_grpc.HomeStub(channel).Push()
        self._replies = 0
        reader = asyncio.create_task(self._read(call))
        try:
            for batch in list(self._unanswered):
                batch.quiet = False
                await call.write(batch)
            while not reader.done():
                if self._pending and len(self._unanswered) < _WINDOW:
                    await call.write(self._batch())
                elif self._unanswered and self._unanswered[-1].quiet:
                    if self._closing or not await self._change(self._settled):
                        await call.write(self._batch())
                elif await self._over():
                    break
        except (grpc.aio.AioRpcError, asyncio.InvalidStateError):
            pass
        finally:
            call.cancel()
            with contextlib.suppress(grpc.aio.AioRpcError, asyncio.CancelledError):
                await reader
        return self._replies > 0

    def _batch(self) -> pb.TokenBatch:
        """What is to be sent next; an empty one only asks for an answer."""
        pending, self._pending = self._pending, []
        ends = not pending or any(one.finish_reason for one in pending)
        quiet = not ends and (len(self._unanswered) + 1) % _ANSWERED != 0
        batch = pb.TokenBatch(instance=self._instance, tokens=pending, quiet=quiet)
        self._unanswered.append(batch)
        return batch

    async def _over(self) -> bool:
        """Wait for something to do; True if there is nothing left."""
        if self._closing and not self._unanswered:
            return True
        return not await self._change(_IDLE) and not self._unanswered

    async def _change(self, within: float) -> bool:
        """Wait for something to do; False when nothing came `within` so many seconds."""
        self._changed.clear()
        try:
            async with asyncio.timeout(within):
                await self._changed.wait()
        except TimeoutError:
            return False
        return True

    async def _read(self, call: grpc.aio.StreamStreamCall[pb.TokenBatch, pb.PushReply]) -> None:
        try:
            async for reply in call:
                self._replies += 1
                for _ in range(min(reply.batches or 1, len(self._unanswered))):
                    self._unanswered.popleft()
                for fence in reply.fenced:
                    self._fenced(fence.request_id, Epoch(fence.epoch.attempt, fence.epoch.move))
                self._changed.set()
        finally:
            self._changed.set()

    def _give_up(self) -> None:
        self._pending.clear()
        self._unanswered.clear()
        self._given_up(self._home)
