"""A pusher between an engine and a home that record what they are told."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine
from concurrent.futures import Future
from contextlib import asynccontextmanager
from typing import Any

from cluster import control_pb2 as pb
from cluster import control_pb2_grpc, rpc
from cluster.token_stream import TokenPusher
from engine.outcome import Emitted
from engine.plan import Drawn
from engine.request import Request, Sampling
from engine.sequence import Epoch, FinishReason, Sequence
from engine.status import RequestStatus
from tests.cluster.doubles import ByteDetokenizer
from tests.cluster.local_cluster import TOKEN


class Core:
    """Records what the pusher wants of the engine."""

    def __init__(self) -> None:
        self.finished: list[tuple[str, int, int]] = []
        self.cancelled: list[str] = []
        self.living: dict[str, list[Sequence]] = {}

    def finish(self, request_id: str, choice: int, length: int) -> None:
        self.finished.append((request_id, choice, length))

    def cancel(self, request_id: str) -> None:
        self.cancelled.append(request_id)

    def sequences(self, request_id: str) -> list[Sequence]:
        return self.living.get(request_id, [])

    def requests(self, now: float) -> list[RequestStatus]:
        return [RequestStatus(request_id, "decode", 1, 0, 0, 0, 0.0) for request_id in self.living]

    def call(self, work: Callable[[Any], Any]) -> Future[Any]:
        done: Future[Any] = Future()
        done.set_result(work(self))
        return done


class Home:
    """A gateway that records what it is told; `fence` is its answer to every batch."""

    def __init__(self) -> None:
        self.batches: list[pb.TokenBatch] = []
        self.fence: list[pb.Fence] = []
        self.silent = False
        self.changed = asyncio.Event()
        self.address = ""
        self.server = rpc.server(TOKEN)

    async def open(self, port: int = 0) -> None:
        class Service(control_pb2_grpc.HomeServicer):
            async def Push(
                _, batches: AsyncIterator[pb.TokenBatch], context: Any
            ) -> AsyncIterator[pb.PushReply]:
                async for batch in batches:
                    self.batches.append(batch)
                    self.changed.set()
                    if not self.silent:
                        yield pb.PushReply(fenced=self.fence if batch.tokens else [])

        control_pb2_grpc.add_HomeServicer_to_server(Service(), self.server)
        self.address = rpc.listen(self.server, "127.0.0.1", port, setting="none")
        await self.server.start()

    async def until(self, condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(20):
            while not condition():
                self.changed.clear()
                await self.changed.wait()

    @property
    def tokens(self) -> list[int]:
        return [token for batch in self.batches for message in batch.tokens for token in message.tokens]

    @property
    def text(self) -> str:
        return "".join(text for batch in self.batches for message in batch.tokens for text in message.text)


@asynccontextmanager
async def pushing(home: Home, core: Core, **options: Any) -> AsyncIterator[TokenPusher]:
    await home.open()
    pusher = TokenPusher("here", lambda _: ByteDetokenizer(), lambda to: rpc.channel(to, TOKEN), **options)
    pusher.start(core.call)
    try:
        yield pusher
    finally:
        await pusher.close()
        await home.server.stop(0)


def run(test: Callable[[], Coroutine[Any, Any, None]]) -> None:
    asyncio.run(test())


def sequence(text: str, **sampling: Any) -> Sequence:
    values = Sampling(max_tokens=1000, **sampling)
    return Sequence(Request("r", (1, 2), values), output=list(text.encode()))


def emitted(
    of: Sequence,
    index: int,
    home: str,
    *,
    finish: FinishReason | None = None,
    stop_token: int | None = None,
    epoch: Epoch | None = None,
) -> Emitted:
    drawn = Drawn(of.output[index]) if index < len(of.output) else None
    return Emitted(of.key, of, epoch or of.epoch, home, index, drawn, finish, stop_token, 0, 0.0, 0.0)
