"""The response that streams ends with its body, with its client or with its time, and cleans up each time."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, Awaitable, Callable
from typing import Any

import pytest
from starlette.types import Message

from cluster.sse import EventStream, event


class Wire:
    """An ASGI server: the client leaves when told to, and may refuse to read."""

    def __init__(self, *, reads: bool = True) -> None:
        self.left = asyncio.Event()
        self.sent: list[Message] = []
        self.reads = reads

    async def receive(self) -> Message:
        await self.left.wait()
        return {"type": "http.disconnect"}

    async def send(self, message: Message) -> None:
        self.sent.append(message)
        if not self.reads:
            await asyncio.Event().wait()

    @property
    def body(self) -> bytes:
        return b"".join(message.get("body", b"") for message in self.sent)


class Body:
    def __init__(self, make: Callable[[], Awaitable[None]] | None = None) -> None:
        self.closed = 0
        self.finished = False
        self.make = make

    async def chunks(self) -> AsyncGenerator[bytes]:
        try:
            yield b"one"
            if self.make is not None:
                await self.make()
            yield b"two"
        finally:
            self.finished = True

    def close(self) -> None:
        self.closed += 1


def answered(wire: Wire, body: Body, within: float = 20.0) -> Any:
    response = EventStream(body.chunks(), {}, closed=body.close, within=within)
    return response({"type": "http"}, wire.receive, wire.send)


def test_the_body_is_sent_and_then_it_is_over() -> None:
    async def run() -> None:
        wire, body = Wire(), Body()
        await answered(wire, body)
        assert (wire.body, body.closed, body.finished) == (b"onetwo", 1, True)
        assert wire.sent[-1]["more_body"] is False

    asyncio.run(run())


def test_a_client_that_leaves_between_two_events_ends_it() -> None:
    async def run() -> None:
        wire = Wire()

        async def leave() -> None:
            wire.left.set()
            await asyncio.Event().wait()

        body = Body(leave)
        await answered(wire, body)
        assert (wire.body, body.closed, body.finished) == (b"one", 1, True)

    asyncio.run(run())


def test_a_client_that_stays_and_does_not_read_is_given_up() -> None:
    async def run() -> None:
        wire, body = Wire(reads=False), Body()
        await answered(wire, body, within=0.01)
        assert body.closed == 1

    asyncio.run(run())


def test_a_body_that_never_began_is_closed_too() -> None:
    async def run() -> None:
        wire, body = Wire(), Body()
        wire.left.set()
        await answered(wire, body)
        assert body.closed == 1

    asyncio.run(run())


def test_a_failure_of_the_body_is_not_hidden() -> None:
    async def run() -> None:
        async def fail() -> None:
            raise RuntimeError("broken")

        body = Body(fail)
        with pytest.raises(RuntimeError, match="broken"):
            await answered(Wire(), body)
        assert body.closed == 1

    asyncio.run(run())


def test_an_event_is_one_line_of_json() -> None:
    found = event({"text": "a\nb — 🦊"}, "r:1")
    assert found == 'id: r:1\ndata: {"text":"a\\nb — 🦊"}\n\n'.encode()


def test_no_client_takes_a_character_for_the_end_of_a_line() -> None:
    text = "".join(map(chr, range(0x100))) + "\u2028\u2029"
    found = event({"text": text}).decode()
    assert len(found.splitlines()) == 2
    assert json.loads(found.removeprefix("data: ")) == {"text": text}
