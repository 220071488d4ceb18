"""What a connection may cost before anything of ours has looked at it: bounds that uvicorn leaves open.

    too many connections      503, closed at once
    headers above the limit   431, closed
    a request that does not   408, closed: from the connection's first moment, or the last answer, until the
    arrive in time            headers are complete; the body has a bound of its own (http_frame.read_body)
"""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

LINGER = 1.0
"""Seconds that a refused client has to read why; what it sends meanwhile is thrown away."""


@dataclass(frozen=True, slots=True)
class Bounds:
    """`headers` in bytes, request line included; `arrival` in seconds; `connections` of one server."""

    headers: int = 32 * 2**10
    arrival: float = 30.0
    connections: int = 4096


def guarded(bounds: Bounds) -> type[asyncio.Protocol]:
    """uvicorn's protocol within these bounds."""

    class Guarded(HttpToolsProtocol):
        _arriving = 0
        _refused = False
        _timer: asyncio.TimerHandle | None = None

        def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
            super().connection_made(transport)
            if len(self.connections) > bounds.connections:
                self._refuse(HTTPStatus.SERVICE_UNAVAILABLE, "too many connections", "overloaded")
                return
            self._expect()

        def data_received(self, data: bytes) -> None:
            if self._over():
                return
            self._arriving += len(data)
            super().data_received(data)
            # The timer runs while headers are awaited. What comes at once has 256 KiB at most.
            if self._timer is not None and self._arriving > bounds.headers:
                self._too_large()

        def on_headers_complete(self) -> None:
            self._rest()
            if sum(len(name) + len(value) for name, value in self.headers) + len(self.url) > bounds.headers:
                self._too_large()
                return
            super().on_headers_complete()

        def on_body(self, body: bytes) -> None:
            if not self._over():
                super().on_body(body)

        def on_message_complete(self) -> None:
            if not self._over():
                super().on_message_complete()

        def on_response_complete(self) -> None:
            super().on_response_complete()
            # The next request of a pipeline may be here already.
            if self.cycle.response_complete and not self._over():
                self._expect()

        def connection_lost(self, exc: Exception | None) -> None:
            self._rest()
            super().connection_lost(exc)

        def _expect(self) -> None:
            self._rest()
            self._arriving = 0
            self._timer = self.loop.call_later(bounds.arrival, self._late)

        def _rest(self) -> None:
            if self._timer is not None:
                self._timer.cancel()
                self._timer = None

        def _late(self) -> None:
            self._timer = None
            if self._arriving:
                self._refuse(HTTPStatus.REQUEST_TIMEOUT, "the request did not arrive in time", "timeout")
            else:
                self.transport.close()

        def _too_large(self) -> None:
            text = f"the request line and headers are above {bounds.headers} bytes (gateway.header_limit)"
            self._refuse(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE, text, "request_too_large")

        def _refuse(self, status: HTTPStatus, message: str, code: str) -> None:
            self._rest()
            kind = "overloaded" if status == 503 else "invalid_request_error"
            error: dict[str, Any] = {"message": message, "type": kind, "param": None, "code": code}
            body = json.dumps({"error": error}).encode()
            retry = "retry-after: 1\r\n" if status == 503 else ""
            head = (
                f"HTTP/1.1 {status.value} {status.phrase}\r\ncontent-type: application/json\r\n"
                f"content-length: {len(body)}\r\n{retry}connection: close\r\n\r\n"
            )
            self.transport.write(head.encode() + body)
            self._refused = True
            if not self.transport.can_write_eof():
                self.transport.close()
                return
            # Closed while something is unread, the connection would be reset and the answer lost.
            self.transport.write_eof()
            self._timer = self.loop.call_later(LINGER, self.transport.close)

        def _over(self) -> bool:
            return self._refused or self.transport.is_closing()

    return Guarded
