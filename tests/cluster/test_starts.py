"""Requests start over a stream that the instance has opened: each once, each answered, none forgotten."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import AsyncIterator
from concurrent.futures import Future
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest

from cluster import control_pb2 as pb
from cluster import control_pb2_grpc, rpc, start_link
from cluster.instance_handle import InstanceHandle
from cluster.start_calls import LinkedInstance, StartCalls
from cluster.start_link import StartLinks
from cluster.token_stream import HomeService
from cluster.token_streams import TokenStreams
from engine.errors import ContextLengthExceeded, Draining, Overloaded, TandemError
from engine.request import Request, Sampling
from tests.cluster.doubles import until
from tests.cluster.local_cluster import TOKEN
from tests.cluster.pools import pools
from tests.cluster.pushing import run


class Engine:
    """Takes starts; answers each with what `answers` has for it, or leaves it open."""

    def __init__(self) -> None:
        self.taken: list[bytes] = []
        self.answers: dict[bytes, Exception] = {}
        self.open: set[bytes] = set()

    def start(self, start: bytes) -> Future[None]:
        self.taken.append(start)
        future: Future[None] = Future()
        if start in self.answers:
            future.set_exception(self.answers[start])
        elif start not in self.open:
            future.set_result(None)
        return future


class Linked:
    """A gateway's server and an instance's links to it."""

    def __init__(self) -> None:
        self.calls = StartCalls()
        self.engine = Engine()
        self.links = StartLinks("decode-0", lambda to: rpc.channel(to, TOKEN), self.engine.start)
        self.server = rpc.server(TOKEN)
        self.address = ""

    async def serve(self, service: Any = None) -> None:
        service = service or HomeService(TokenStreams(), starts=self.calls)
        control_pb2_grpc.add_HomeServicer_to_server(service, self.server)
        self.address = rpc.listen(self.server, "127.0.0.1", 0, setting="none")
        await self.server.start()

    async def link(self) -> None:
        self.links.link(self.address)
        await until(lambda: self.calls.has("decode-0"))


def actor_calls(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, bytes]]:
    """What is started by actor calls from now on."""
    called = []

    async def call(self: InstanceHandle, start: bytes) -> None:
        called.append((self.name, start))

    monkeypatch.setattr(InstanceHandle, "start", call)
    return called


@asynccontextmanager
async def linked() -> AsyncIterator[Linked]:
    both = Linked()
    await both.serve()
    await both.link()
    yield both
    await both.links.close()
    await both.server.stop(0)


def test_each_start_is_taken_once_and_answered() -> None:
    async def test() -> None:
        async with linked() as both:
            starts = [bytes([number]) * 5000 for number in range(50)]
            await asyncio.gather(*(both.calls.start("decode-0", start, 20) for start in starts))
            assert sorted(both.engine.taken) == starts

    run(test)


@pytest.mark.parametrize("error", [Draining("ends"), ContextLengthExceeded("too long", param="messages")])
def test_a_refusal_comes_back_as_it_was(error: TandemError) -> None:
    async def test() -> None:
        async with linked() as both:
            both.engine.answers[b"r"] = error
            with pytest.raises(type(error), match=error.message) as refused:
                await both.calls.start("decode-0", b"r", 20)
            assert refused.value.param == error.param
            await both.calls.start("decode-0", b"another", 20)

    run(test)


def test_what_is_no_start_is_answered_too() -> None:
    async def test() -> None:
        async with linked() as both:
            both.engine.start = lambda start: 1 / 0  # type: ignore[assignment,method-assign,return-value]
            both.links._start = both.engine.start
            with pytest.raises(TandemError, match="division"):
                await both.calls.start("decode-0", b"r", 20)

    run(test)


def test_the_end_of_the_instance_answers_those_that_wait() -> None:
    async def test() -> None:
        async with linked() as both:
            both.engine.open.add(b"r")
            waiting = asyncio.create_task(both.calls.start("decode-0", b"r", 20))
            await until(lambda: both.engine.taken == [b"r"])
            await both.links.close()
            with pytest.raises(Overloaded, match="decode-0 broke before it answered"):
                await waiting
            await until(lambda: not both.calls.has("decode-0"))

    run(test)


def test_a_stream_that_does_not_answer_is_ended_and_the_next_start_is_an_actor_call(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    called = actor_calls(monkeypatch)

    async def test() -> None:
        async with linked() as both:
            both.engine.open.add(b"slow")
            instance = LinkedInstance("decode-0", both.calls, timeout=0.05)
            with pytest.raises(Overloaded, match="did not answer start in time"):
                await instance.start(b"slow")
            assert not both.calls.has("decode-0")
            await instance.start(b"next")
            assert (both.engine.taken, called) == ([b"slow"], [("decode-0", b"next")])
            await until(lambda: not both.links._links)
            await both.link()
            await both.calls.start("decode-0", b"r", 20)

    run(test)


def test_what_was_given_up_is_not_sent() -> None:
    """The instance reads nothing for a while, as when it stands still: only what it was sent before comes."""

    async def test() -> None:
        async with linked() as both:
            silent = rpc.channel(both.address, TOKEN)
            call = control_pb2_grpc.HomeStub(silent).Starts()
            await call.write(pb.StartAnswer(instance="decode-1"))
            await until(lambda: both.calls.has("decode-1"))
            stream = both.calls._streams["decode-1"]
            starts = [asyncio.create_task(stream.start(bytes(2**20))) for _ in range(50)]
            given_up = starts[:-1]
            await asyncio.sleep(0)
            for start in given_up:
                start.cancel()
            await asyncio.wait(given_up)
            received = [await call.read()]
            while received[-1].number < 50:
                received.append(await call.read())
            assert len(received) < 25
            await call.write(pb.StartAnswer(number=50))
            await starts[-1]
            call.cancel()
            await silent.close()

    run(test)


@pytest.mark.parametrize("after", [0.0, 0.002, 0.004, 0.01, 0.02])
def test_a_stream_that_breaks_answers_all_who_wait(after: float) -> None:
    """Whatever it was at: each start succeeds or raises Overloaded, and nothing else is raised."""

    async def test() -> None:
        unhandled: list[object] = []
        asyncio.get_running_loop().set_exception_handler(lambda _, context: unhandled.append(context))
        async with linked() as both:
            starts = [
                asyncio.create_task(both.calls.start("decode-0", bytes(20_000), 20)) for _ in range(100)
            ]
            await asyncio.sleep(after)
            await both.links.close()
            ended = await asyncio.gather(*starts, return_exceptions=True)
            assert {type(one) for one in ended} <= {type(None), Overloaded}
            await until(lambda: not both.calls.has("decode-0"))
        gc.collect()
        await asyncio.sleep(0)
        assert unhandled == []

    run(test)


def test_without_a_stream_it_is_an_actor_call(monkeypatch: pytest.MonkeyPatch) -> None:
    called = actor_calls(monkeypatch)

    async def test() -> None:
        await LinkedInstance("decode-7", StartCalls(), timeout=20).start(b"r")
        async with linked() as both:
            await LinkedInstance("decode-0", both.calls, timeout=20).start(b"s")
            assert both.engine.taken == [b"s"]

    run(test)
    assert called == [("decode-7", b"r")]


def test_a_newer_stream_takes_the_place_of_an_older() -> None:
    """The end of the older one, which may be noticed late, does not end the newer."""

    async def test() -> None:
        async with linked() as both:
            again = Engine()
            other = StartLinks("decode-0", lambda to: rpc.channel(to, TOKEN), again.start)
            before = both.calls._streams["decode-0"]
            other.link(both.address)
            await until(lambda: both.calls._streams["decode-0"] is not before)
            await both.links.close()
            await until(before.over.is_set)
            await both.calls.start("decode-0", b"r", 20)
            assert (again.taken, both.engine.taken) == ([b"r"], [])
            await other.close()

    run(test)


def test_the_end_of_a_gateway_ends_its_link_and_another_may_come() -> None:
    async def test() -> None:
        async with linked() as both:
            await both.server.stop(0)
            await until(lambda: not both.links._links)
            both.server, both.calls = rpc.server(TOKEN), StartCalls()
            await both.serve()
            await both.link()
            await both.calls.start("decode-0", b"r", 20)

    run(test)


def test_a_gateway_that_knows_no_such_stream_is_asked_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Until its address may be another's."""

    class Older(control_pb2_grpc.HomeServicer):
        asked = 0

        async def Starts(self, answers: Any, context: grpc.aio.ServicerContext[Any, Any]) -> None:
            Older.asked += 1
            await context.abort(grpc.StatusCode.UNIMPLEMENTED, "no such method")

    async def test() -> None:
        both = Linked()
        await both.serve(Older())
        for _ in range(3):
            both.links.link(both.address)
            await until(lambda: not both.links._links)
        assert Older.asked == 1
        monkeypatch.setattr(start_link, "ASK_AGAIN", 0.0)
        both.links.link(both.address)
        await until(lambda: not both.links._links)
        assert Older.asked == 2
        await both.server.stop(0)

    run(test)


def test_an_instance_opens_its_stream_with_the_first_request(tmp_path: Path) -> None:
    async def test() -> None:
        async with pools(tmp_path, prefill=False) as both:
            request = [Request(f"r{i}", (1, 2, 3), Sampling(4)) for i in range(3)]
            await both.ask(request[:1])
            await until(lambda: both.decode.starts.has("decode-0"))
            await both.ask(request[1:])
            assert both.decode.over_stream == 2

    run(test)
