"""Server-sent events as OpenAI streams them, and a response that notices at once when its client leaves."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, Callable, Mapping
from typing import Any

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

DONE = b"data: [DONE]\n\n"
PING = b": ping\n\n"

HEADERS = {"cache-control": "no-cache", "x-accel-buffering": "no"}


_LINE_ENDS = {ord(end): f"\\u{ord(end):04x}" for end in "\x85\u2028\u2029"}
"""No line ends to the standard, but to many a client, whose language splits lines there."""


def event(data: Mapping[str, Any], position: str | None = None) -> bytes:
    """One event; `position` becomes its id, which clients send back as Last-Event-ID."""
    head = f"id: {position}\n" if position is not None else ""
    text = json.dumps(data, ensure_ascii=False, separators=(",", ":"))
    return f"{head}data: {text.translate(_LINE_ENDS)}\n\n".encode()


def comment(text: str) -> bytes:
    """A line that clients skip."""
    return f": {text}\n\n".encode()


class EventStream(Response):
    """Sends what `body` yields. Calls `closed` when that ends, and at once when the client leaves.

    After `within` seconds it is over in any case: a client may stay and not read.
    """

    media_type = "text/event-stream"

    def __init__(
        self,
        body: AsyncGenerator[bytes],
        headers: Mapping[str, str],
        closed: Callable[[], None],
        within: float,
    ) -> None:
        super().__init__(headers={**HEADERS, **headers})
        del self.headers["content-length"]
        self._body = body
        self._closed = closed
        self._within = within

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        sending = asyncio.create_task(self._send(send))
        leaving = asyncio.create_task(disconnected(receive))
        try:
            await asyncio.wait([sending, leaving], timeout=self._within, return_when=asyncio.FIRST_COMPLETED)
        finally:
            self._closed()
            for task in (sending, leaving):
                task.cancel()
            await asyncio.gather(sending, leaving, return_exceptions=True)
            await self._body.aclose()
        if not sending.cancelled() and (error := sending.exception()) is not None:
            raise error

    async def _send(self, send: Send) -> None:
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        async for chunk in self._body:
            await send({"type": "http.response.body", "body": chunk, "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})


async def disconnected(receive: Receive) -> None:
    """Returns when the client has left. The request's body must have been read."""
    while (await receive())["type"] != "http.disconnect":
        pass
