"""How tokens come home: the pusher beside an instance's engine loop, and the service at the gateway.

    engine loop ─ push(emitted) ─▶ TokenPusher ─ text, stop strings ─▶ HomeLink ══ Home.Push ══▶ HomeService
         ▲                              │                                │  one TokenBatch per step   │
         └── finish (stop string), cancel (fenced, home gone) ───────────┴── PushReply for some ◀─────┘

A batch stays with its link until the reply has come and is sent again over a new connection, so a broken
one loses nothing; the gateway drops repeats. A home that is away longer than the lease loses its requests.
"""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from concurrent.futures import Future
from typing import Any, Protocol

import grpc

from cluster import control_pb2 as pb
from cluster import control_pb2_grpc
from cluster.chunk_notes import ChunkNotes
from cluster.home_link import Connect, HomeLink
from cluster.rpc import error_message
from cluster.start_calls import StartCalls
from cluster.stream_text import ChoiceText, Detokenizer
from cluster.takeover import Endings
from cluster.timelines import Timelines
from cluster.token_streams import TokenStreams
from engine.core import Emitted, EngineCore
from engine.errors import Conflict, Overloaded, TandemError
from engine.request import Request
from engine.sequence import Epoch, FinishReason, SequenceKey
from migration import wire_pb2

Call = Callable[[Callable[[EngineCore], Any]], "Future[Any]"]

Leave = Callable[[float], Awaitable[int]]
"""Accepts nothing more and waits so many seconds at most; gives how many requests are still under way."""


class Texts(Protocol):
    """Makes the detokeniser of one choice of a request."""

    def __call__(self, request: Request) -> Detokenizer: ...


class TokenPusher:
    """The TokenSink of an instance. `push` is called in the engine's thread, the rest in an event loop.

    The text state of a choice is only a cache: it is built anew from the sequence's own output when it is
    missing, which is how a sequence that moved here or was recovered goes on with exactly the text that its
    client has.
    """

    def __init__(
        self,
        instance: str,
        detokenizer: Texts,
        connect: Connect,
        *,
        lease: float = 30.0,
        kept: float = 30.0,
        idle: float = 10.0,
    ) -> None:
        """`kept` is how many seconds ended choices can be found among `endings`, `idle` how many the text of
        a choice is held in readiness for its next token: nobody says so when it goes on elsewhere."""
        self.chunks = ChunkNotes()
        self.endings = Endings(kept)
        self._instance = instance
        self._detokenizer = detokenizer
        self._connect = connect
        self._lease = lease
        self._texts: OrderedDict[tuple[SequenceKey, Epoch], tuple[float, ChoiceText]] = OrderedDict()
        """The time of the last token and the text, in the order of these times."""
        self._idle = idle
        self._links: dict[str, HomeLink] = {}
        self._call: Call | None = None
        self._events: asyncio.AbstractEventLoop | None = None

    def start(self, call: Call) -> None:
        """Begin to push; call in the event loop. `call` is EngineLoop.call."""
        self._call = call
        self._events = asyncio.get_running_loop()

    def push(self, emitted: Sequence[Emitted]) -> None:
        """Take the tokens of one step; never blocks."""
        events = self._events
        if events is None or events.is_closed():
            return
        events.call_soon_threadsafe(self._take, tuple(emitted), time.monotonic())

    def taken(self, request_id: str, home: str, epoch: Epoch) -> None:
        """Tell a home that a request of its has gone to another gateway. Never blocks."""
        gone = Conflict("the client has come back through another gateway")
        self._tell(home, [_cancelled(request_id, epoch, gone)])

    def _tell(self, home: str, messages: list[pb.Tokens]) -> None:
        events = self._events
        if messages and events is not None and not events.is_closed():
            events.call_soon_threadsafe(self._send, home, messages)

    async def close(self) -> None:
        """Send what is left, bounded to a second, and end the connections."""
        self._events = None
        await asyncio.gather(*(link.close() for link in self._links.values()))
        self._links.clear()

    def _take(self, emitted: tuple[Emitted, ...], drawn: float) -> None:
        homes: dict[str, list[pb.Tokens]] = {}
        for one in emitted:
            message = self._message(one, drawn)
            if message is not None and not one.index and not one.key.choice:
                prompt = len(one.sequence.request.prompt)
                chunks = self.chunks.take(one.key.request_id, prompt, one.cached, drawn)
                message.chunks.extend(pb.Chunk(tokens=tokens, age=age) for tokens, age in chunks)
            if message is not None:
                self.endings.keep(message, one.sequence.output, one.sequence.scores)
                homes.setdefault(one.home, []).append(message)
        for home, messages in homes.items():
            self._send(home, messages)
        self._forget(drawn - self._idle)

    def _send(self, home: str, messages: list[pb.Tokens]) -> None:
        link = self._links.get(home)
        if link is None or link.done:
            self._links = {other: one for other, one in self._links.items() if not one.done}
            link = HomeLink(
                self._instance, home, self._connect, self._fenced, self._given_up, lease=self._lease
            )
            self._links[home] = link
        link.send(messages)

    def _message(self, one: Emitted, drawn: float) -> pb.Tokens | None:
        """The message of a token, or of an earlier one if the text ends there; None after the end."""
        cache = one.key, one.epoch
        _, text = self._texts.pop(cache, (drawn, None))
        anew = text is None or (text.count != one.index and text.stopped is None)
        if text is None or anew:
            text = ChoiceText(one.sequence.request.sampling, self._detokenizer(one.sequence.request))
        if one.finish is None:
            self._texts[cache] = drawn, text
        if anew:
            stop = self._replay(one, text)
            if stop is not None:
                return stop
        elif text.stopped is not None:
            return None
        if one.drawn is None:
            return self._tokens(one, one.index, None, text.end(), text.stopped)
        piece = text.token(one.drawn.token, finish=one.finish, stop_token=one.stop_token)
        if one.finish is None and text.stopped is not None:
            self._finish(one.key, one.index + 1)
        return self._tokens(one, one.index, one.drawn.token, piece, text.stopped)

    def _replay(self, one: Emitted, text: ChoiceText) -> pb.Tokens | None:
        """Bring `text` to where it was elsewhere; the last message again if it had ended there."""
        for index in range(one.index):
            token = one.sequence.output[index]
            piece = text.token(token)
            if text.stopped is not None:
                self._finish(one.key, index + 1)
                return self._tokens(one, index, token, piece, text.stopped)
        return None

    def _forget(self, time: float) -> None:
        """The texts that have had no token since `time`: of choices that have ended here, or moved."""
        while self._texts and next(iter(self._texts.values()))[0] < time:
            self._texts.popitem(last=False)

    def _tokens(
        self, one: Emitted, index: int, token: int | None, text: str, stopped: str | None
    ) -> pb.Tokens:
        finish = FinishReason.STOP if stopped is not None else one.finish
        message = pb.Tokens(
            request_id=one.key.request_id,
            choice=one.key.choice,
            epoch=wire_pb2.Epoch(attempt=one.epoch.attempt, move=one.epoch.move),
            index=index,
            tokens=[] if token is None else [token],
            text=[text],
            finish_reason="" if finish is None else finish.value,
            cached=one.cached,
            queue_seconds=one.queued,
            prefill_seconds=one.prefilled,
        )
        if one.drawn is not None and one.drawn.logprob is not None and index == one.index:
            top = [pb.TopLogprob(token=token, logprob=logprob) for token, logprob in one.drawn.top]
            message.logprobs.append(pb.Logprob(logprob=one.drawn.logprob, top=top))
        if stopped is not None:
            message.stop_string = stopped
        elif one.stop_token is not None and one.stop_token in one.sequence.request.sampling.stop_token_ids:
            message.stop_token = one.stop_token
        if finish is FinishReason.FAILED:
            message.error.code = "server_error"
            message.error.message = f"instance {self._instance} could not go on with the request"
        return message

    def _finish(self, key: SequenceKey, length: int) -> None:
        assert self._call is not None
        self._call(lambda core: core.finish(key.request_id, key.choice, length))

    def _fenced(self, request_id: str, epoch: Epoch) -> None:
        """Drop a request that a newer epoch owns, unless this instance owns it again meanwhile."""

        def drop(core: EngineCore) -> None:
            if any(sequence.epoch < epoch for sequence in core.sequences(request_id)):
                core.cancel(request_id)

        assert self._call is not None
        self._call(drop)

    def _given_up(self, home: str) -> None:
        """Drop every request of a home that cannot be reached. Should it be back soon, it is told."""
        reason = Overloaded(f"{self._instance} could not reach {home} and dropped the request")

        def drop(core: EngineCore) -> None:
            dropped = []
            for one in core.requests(time.time()):
                choices = core.sequences(one.request_id)
                if choices and choices[0].home == home:
                    dropped.append(_cancelled(one.request_id, choices[0].epoch, reason))
                    core.cancel(one.request_id)
            self._tell(home, dropped)

        assert self._call is not None
        self._call(drop)


def _cancelled(request_id: str, epoch: Epoch, reason: TandemError) -> pb.Tokens:
    """What a home is told of a request that this instance has dropped."""
    return pb.Tokens(
        request_id=request_id,
        epoch=wire_pb2.Epoch(attempt=epoch.attempt, move=epoch.move),
        finish_reason="cancelled",
        error=error_message(reason),
    )


class HomeService(control_pb2_grpc.HomeServicer):
    """Home at the gateway: batches of tokens are answered with the requests that their sender shall drop."""

    def __init__(
        self,
        streams: TokenStreams,
        timelines: Timelines | None = None,
        leave: Leave | None = None,
        starts: StartCalls | None = None,
    ) -> None:
        self._streams = streams
        self._timelines = Timelines() if timelines is None else timelines
        self._leave = leave
        self._starts = StartCalls() if starts is None else starts

    async def Push(
        self,
        request_iterator: AsyncIterator[pb.TokenBatch],
        context: grpc.aio.ServicerContext[pb.TokenBatch, pb.PushReply],
    ) -> AsyncIterator[pb.PushReply]:
        batches = 0
        async for batch in request_iterator:
            reply = self._streams.push(batch)
            batches += 1
            if reply.fenced or not batch.quiet:
                reply.batches, batches = batches, 0
                yield reply

    async def Claim(
        self, request: pb.ClaimRequest, context: grpc.aio.ServicerContext[pb.ClaimRequest, pb.ClaimReply]
    ) -> pb.ClaimReply:
        return self._streams.claim(request)

    async def Starts(
        self,
        request_iterator: AsyncIterator[pb.StartAnswer],
        context: grpc.aio.ServicerContext[pb.StartAnswer, pb.StartCall],
    ) -> None:
        await self._starts.serve(request_iterator, context)

    async def Describe(
        self,
        request: pb.TimelinesRequest,
        context: grpc.aio.ServicerContext[pb.TimelinesRequest, pb.TimelineList],
    ) -> pb.TimelineList:
        return pb.TimelineList(timelines=self._timelines.find(request.id, request.most))

    async def Leave(
        self, request: pb.LeaveRequest, context: grpc.aio.ServicerContext[pb.LeaveRequest, pb.LeaveReply]
    ) -> pb.LeaveReply:
        return pb.LeaveReply(requests=0 if self._leave is None else await self._leave(request.within))
