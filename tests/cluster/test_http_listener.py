"""The gateway's own port."""

from __future__ import annotations

import asyncio
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Callable

import httpx
import pytest
import uvloop
from starlette.responses import PlainTextResponse, StreamingResponse

from cluster import http_listener
from cluster.http_listener import Listener
from cluster.ports import free_port
from cluster.standby import Place
from engine.errors import SetupError

HOLDER = """
import sys, time
from cluster.http_listener import Listener
from cluster.standby import Place
one = Listener("127.0.0.1", int(sys.argv[1]), place=Place("ours"))
print("ready", flush=True)
time.sleep(60)
"""


def port_of(listener: Listener) -> int:
    return int(listener.url.rpartition(":")[2])


async def answered(client: httpx.AsyncClient, url: str) -> str:
    """Asks until somebody listens."""
    async with asyncio.timeout(10):
        while True:
            try:
                return (await client.get(url)).text
            except httpx.TransportError:
                await asyncio.sleep(0.01)


def test_it_answers_at_its_url() -> None:
    async def run() -> None:
        listener = Listener("127.0.0.1", 0)
        listener.serve(PlainTextResponse("hello"))
        async with httpx.AsyncClient(trust_env=False) as client:
            assert (await client.get(listener.url)).text == "hello"
        await listener.close()

    asyncio.run(run())


def test_a_taken_port_is_an_error_that_names_it() -> None:
    async def run() -> None:
        first = Listener("127.0.0.1", 0)
        with pytest.raises(SetupError, match=rf"127\.0\.0\.1:{port_of(first)} .*gateway\.port"):
            Listener("127.0.0.1", port_of(first))
        await first.close()

    asyncio.run(run())


def test_a_second_gateway_of_the_machine_stands_by_and_takes_over() -> None:
    async def run() -> None:
        first = Listener("127.0.0.1", free_port(), place=Place("ours"))
        second = Listener("127.0.0.1", port_of(first), place=Place("ours"))
        first.serve(PlainTextResponse("first"))
        second.serve(PlainTextResponse("second"))
        assert (first.standby, second.standby, second.url) == (False, True, first.url)
        async with httpx.AsyncClient(trust_env=False) as client:
            assert (await client.get(first.url)).text == "first"
            await first.close()
            assert await answered(client, first.url) == "second"
        assert not second.standby
        await second.close()

    asyncio.run(run())


@pytest.mark.parametrize("loop", [asyncio.new_event_loop, uvloop.new_event_loop], ids=["asyncio", "uvloop"])
def test_a_gateway_that_is_killed_is_followed_by_the_one_that_stands_by(
    loop: Callable[[], asyncio.AbstractEventLoop],
) -> None:
    """Ray Serve's replicas have uvloop."""
    port = free_port()

    async def run(killed: subprocess.Popen[bytes]) -> None:
        second = Listener("127.0.0.1", port, place=Place("ours"))
        second.serve(PlainTextResponse("second"))
        await asyncio.sleep(0)
        assert second.standby
        second.check()
        killed.kill()
        async with httpx.AsyncClient(trust_env=False) as client:
            assert await answered(client, second.url) == "second"
        await second.close()

    with subprocess.Popen([sys.executable, "-c", HOLDER, str(port)], stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline()
        with asyncio.Runner(loop_factory=loop) as runner:
            runner.run(run(holder))


@pytest.mark.parametrize("loop", [asyncio.new_event_loop, uvloop.new_event_loop], ids=["asyncio", "uvloop"])
def test_who_closes_hands_the_port_over_at_once_and_lets_an_answer_under_way_end(
    loop: Callable[[], asyncio.AbstractEventLoop],
) -> None:
    async def run() -> None:
        asked, goes_on = asyncio.Event(), asyncio.Event()

        async def slowly() -> AsyncIterator[str]:
            yield "be"
            asked.set()
            await goes_on.wait()
            yield "gun"

        first = Listener("127.0.0.1", free_port(), place=Place("ours"))
        second = Listener("127.0.0.1", port_of(first), place=Place("ours"))
        first.serve(StreamingResponse(slowly()))
        second.serve(PlainTextResponse("second"))
        async with httpx.AsyncClient(trust_env=False) as early, httpx.AsyncClient(trust_env=False) as late:
            answer = asyncio.create_task(early.get(first.url))
            await asked.wait()
            closing = asyncio.create_task(first.close(30))
            assert await answered(late, second.url) == "second"
            assert not answer.done()
            goes_on.set()
            assert (await answer).text == "begun"
        await closing
        await second.close()

    with asyncio.Runner(loop_factory=loop) as runner:
        runner.run(run())


def test_a_port_that_another_cluster_has_is_taken() -> None:
    async def run() -> None:
        first = Listener("127.0.0.1", free_port(), place=Place("ours"))
        with pytest.raises(SetupError, match="cannot be listened on"):
            Listener("127.0.0.1", port_of(first), place=Place("theirs"))
        again = Place("theirs")
        assert again.take(), "the place is kept although there is no listener"
        again.leave()
        await first.close()

    asyncio.run(run())


def test_who_takes_over_keeps_the_place_while_the_port_is_not_free_yet(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Or the next one would believe that nobody listens, and fail at the port."""
    tries = asyncio.Queue[int]()
    bind = http_listener._bind

    def counted(host: str, port: int, setting: str) -> socket.socket:
        tries.put_nowait(port)
        return bind(host, port, setting)

    async def run() -> None:
        port, before = free_port(), Place("ours")
        assert before.take()
        with socket.socket() as lingering:
            lingering.bind(("127.0.0.1", port))
            second = Listener("127.0.0.1", port, place=Place("ours"))
            monkeypatch.setattr(http_listener, "_bind", counted)
            second.serve(PlainTextResponse("second"))
            await asyncio.sleep(0)
            before.leave()
            async with asyncio.timeout(10):
                assert (await tries.get(), await tries.get()) == (port, port)
            assert second.standby
            assert Listener("127.0.0.1", port, place=Place("ours")).standby
        async with httpx.AsyncClient(trust_env=False) as client:
            assert await answered(client, second.url) == "second"
        assert Listener("127.0.0.1", port, place=Place("ours")).standby
        await second.close()

    asyncio.run(run())


def test_who_stood_by_ends_as_quietly() -> None:
    async def run() -> None:
        first = Listener("127.0.0.1", free_port(), place=Place("ours"))
        second = Listener("127.0.0.1", port_of(first), place=Place("ours"))
        second.serve(PlainTextResponse("second"))
        await second.close()
        await first.close()

    asyncio.run(run())


def test_the_port_is_free_again_afterwards() -> None:
    async def run() -> None:
        first = Listener("127.0.0.1", 0)
        first.serve(PlainTextResponse("hello"))
        await first.close()
        again = Listener("127.0.0.1", port_of(first))
        await again.close()

    asyncio.run(run())


def test_the_signals_of_the_process_stay_as_they_are() -> None:
    async def run() -> None:
        before = signal.getsignal(signal.SIGTERM)
        listener = Listener("127.0.0.1", 0)
        listener.serve(PlainTextResponse("hello"))
        async with httpx.AsyncClient(trust_env=False) as client:
            await client.get(listener.url)
        assert signal.getsignal(signal.SIGTERM) is before
        await listener.close()

    asyncio.run(run())
