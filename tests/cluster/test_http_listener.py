"""The gateway's own port."""

from __future__ import annotations

import asyncio
import signal

import httpx
import pytest
from starlette.responses import PlainTextResponse

from cluster.http_listener import Listener
from engine.errors import SetupError


def port_of(listener: Listener) -> int:
    return int(listener.url.rpartition(":")[2])


def test_it_answers_at_its_url() -> None:
    async def run() -> None:
        listener = Listener("127.0.0.1", 0, others=False)
        listener.serve(PlainTextResponse("hello"))
        async with httpx.AsyncClient(trust_env=False) as client:
            assert (await client.get(listener.url)).text == "hello"
        await listener.close()

    asyncio.run(run())


def test_a_taken_port_is_an_error_that_names_it() -> None:
    async def run() -> None:
        first = Listener("127.0.0.1", 0, others=False)
        with pytest.raises(SetupError, match=rf"127\.0\.0\.1:{port_of(first)} .*gateway\.port"):
            Listener("127.0.0.1", port_of(first), others=False)
        await first.close()

    asyncio.run(run())


def test_a_second_gateway_of_the_machine_takes_a_free_port() -> None:
    async def run() -> None:
        first = Listener("127.0.0.1", 0, others=False)
        second = Listener("127.0.0.1", port_of(first), others=True)
        assert port_of(second) not in (0, port_of(first))
        await first.close()
        await second.close()

    asyncio.run(run())


def test_the_port_is_free_again_afterwards() -> None:
    async def run() -> None:
        first = Listener("127.0.0.1", 0, others=False)
        first.serve(PlainTextResponse("hello"))
        await first.close()
        again = Listener("127.0.0.1", port_of(first), others=False)
        await again.close()

    asyncio.run(run())


def test_the_signals_of_the_process_stay_as_they_are() -> None:
    async def run() -> None:
        before = signal.getsignal(signal.SIGTERM)
        listener = Listener("127.0.0.1", 0, others=False)
        listener.serve(PlainTextResponse("hello"))
        async with httpx.AsyncClient(trust_env=False) as client:
            await client.get(listener.url)
        assert signal.getsignal(signal.SIGTERM) is before
        await listener.close()

    asyncio.run(run())
