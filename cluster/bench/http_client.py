"""The load client's half of HTTP: posts a body and notes when each piece of the answer came.

    begin ─▶ connect ─▶ send ─▶ pieces (time, bytes) … ─▶ "[DONE]" or the connection's end

While requests run nothing is parsed: a piece costs one clock reading and one append, so the client takes
next to nothing from a server on the same machine and is late for no other piece. What the pieces say is read
afterwards, by `recording.py`. Each request has a connection of its own, which the server is asked to close.
"""

from __future__ import annotations

import asyncio
import json
import ssl
import time
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

from cluster.bench.recording import Recording
from engine.errors import ConfigError

_END = b"data: [DONE]"


class Endpoint:
    """Where a server listens: scheme, host, port and the path before /v1."""

    def __init__(self, url: str, *, api_key: str | None = None, verify: ssl.SSLContext | None = None) -> None:
        """`verify` says whose certificates to believe; default: the system's, or those of SSL_CERT_FILE.

        Raises ConfigError for what is no http or https URL.
        """
        parts = urlsplit(url if "//" in url else f"http://{url}")
        try:
            port = parts.port
        except ValueError:
            port = -1
        if parts.scheme not in ("http", "https") or not parts.hostname or port == -1:
            raise ConfigError(f"expected a URL such as http://127.0.0.1:8000, got {url!r}", param="url")
        self.host = parts.hostname
        self.tls = (verify or ssl.create_default_context()) if parts.scheme == "https" else None
        self.port = port or (443 if self.tls else 80)
        self.base = parts.path.rstrip("/").removesuffix("/v1")
        self.url = f"{parts.scheme}://{parts.netloc}{self.base}"
        self._netloc = parts.netloc.rpartition("@")[2]
        self._authorization = f"Authorization: Bearer {api_key}\r\n" if api_key else ""

    def message(self, path: str, body: Mapping[str, Any]) -> bytes:
        """The whole POST as bytes."""
        data = json.dumps(body, separators=(",", ":")).encode()
        head = (
            f"POST {self.base}{path} HTTP/1.1\r\nHost: {self._netloc}\r\nContent-Type: application/json\r\n"
            f"Accept: text/event-stream\r\nConnection: close\r\n{self._authorization}"
            f"Content-Length: {len(data)}\r\n\r\n"
        )
        return head.encode() + data


class _Listener(asyncio.Protocol):
    """Notes what comes, and tells `done` of the end."""

    def __init__(self, recording: Recording, message: bytes) -> None:
        self._recording = recording
        self._message = message
        self._tail = b""
        self._transport: asyncio.Transport | None = None
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        transport.write(self._message)

    def data_received(self, data: bytes) -> None:
        self._recording.pieces.append((time.perf_counter(), data))
        seen = self._tail + data
        if _END in seen:
            self._end()
        self._tail = seen[-len(_END) :]

    def connection_lost(self, error: Exception | None) -> None:
        if error is not None and not self.done.done():
            self._recording.failure = f"the connection broke: {str(error) or type(error).__name__}"
        self._end()

    def close(self) -> None:
        if self._transport is not None:
            self._transport.abort()

    def _end(self) -> None:
        if not self.done.done():
            self._recording.ended = time.perf_counter()
            self.done.set_result(None)


async def post(endpoint: Endpoint, message: bytes, *, within: float) -> Recording:
    """Send a message of `Endpoint.message` and record the answer, at most `within` seconds of it.

    What goes wrong is in the recording.
    """
    recording = Recording(begun=time.perf_counter())
    listener: _Listener | None = None
    try:
        async with asyncio.timeout(within):
            _, listener = await asyncio.get_running_loop().create_connection(
                lambda: _Listener(recording, message), endpoint.host, endpoint.port, ssl=endpoint.tls
            )
            await listener.done
    except TimeoutError:
        recording.failure = f"no complete answer within {within:g} s"
    except OSError as error:
        recording.failure = f"{endpoint.url} cannot be reached: {error.strerror or error}"
    finally:
        if listener is not None:
            listener.close()
    return recording
