"""Frames over TCP, encrypted where both ends have certificates. The payload follows its header."""

from __future__ import annotations

import socket
import zlib
from collections.abc import Callable
from typing import Protocol

from engine.errors import TransferFailed
from migration.framing import DATA, Stream, pack
from migration.transport import Fill

SILENCE = 30
"""Seconds after which a machine that does not answer is gone, and a connection to it ends."""

PROBE_EVERY = 5


class Secure(Protocol):
    """Encrypts connections, and lets in only who shows a certificate of the cluster."""

    def server(self, sock: socket.socket) -> socket.socket:
        """The accepting end; must not wait for the other."""

    def client(self, sock: socket.socket) -> socket.socket:
        """The calling end. Raises OSError if the two don't trust each other."""


class TcpFrame:
    """Its payload lies in the channel's one buffer: release it before the next frame is received."""

    def __init__(self, header: bytes, payload: memoryview | None) -> None:
        self.header = header
        self.payload = payload

    def release(self) -> None:
        if self.payload is not None:
            self.payload.release()
            self.payload = None


class TcpChannel:
    """See `transport.Channel`. Two buffers, one each way, as large as the largest payload so far.

    `stream` is for a transport whose payloads take another road.
    """

    tamper: Fill | None = None

    def __init__(self, sock: socket.socket, timeout: float) -> None:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        _notice_its_end(sock)
        self.stream = self._stream = Stream(sock, timeout)
        self._out = bytearray()
        self._in = bytearray()
        self.fileno = self._stream.fileno
        self.trust = self._stream.trust
        self.close = self._stream.close

    @property
    def pending(self) -> bool:
        return self._stream.pending

    def send(self, header: bytes, nbytes: int = 0, fill: Fill | None = None) -> None:
        if len(self._out) < nbytes:
            self._out = bytearray(nbytes)
        with memoryview(self._out)[:nbytes] as payload:
            if fill is not None:
                fill(payload)
            checksum = zlib.crc32(payload)
            if self.tamper is not None and nbytes:
                self.tamper(payload)
            self._stream.write(pack(DATA, 0, header, nbytes, checksum), payload)

    def receive(self, timeout: float) -> TcpFrame | None:
        head = self._stream.read(timeout)
        if head is None:
            return None
        if head.kind != DATA:
            raise TransferFailed(f"a frame of unknown kind {head.kind}")
        if len(self._in) < head.nbytes:
            self._in = bytearray(head.nbytes)
        payload = memoryview(self._in)[: head.nbytes]
        self._stream.read_payload(payload)
        if zlib.crc32(payload) != head.checksum:
            payload.release()
            return TcpFrame(head.header, None)
        return TcpFrame(head.header, payload)


class TcpListener:
    """See `transport.Listener`."""

    def __init__(
        self, sock: socket.socket, timeout: float, secured: Callable[[socket.socket], socket.socket]
    ) -> None:
        self._sock = sock
        self._timeout = timeout
        self._secured = secured
        host, port = sock.getsockname()[:2]
        self.address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        self.fileno = sock.fileno
        self.close = sock.close

    def accept(self) -> TcpChannel:
        try:
            sock, _ = self._sock.accept()
        except OSError as error:
            raise TransferFailed(f"nobody to accept: {error}") from error
        try:
            return TcpChannel(self._secured(sock), self._timeout)
        except OSError as error:
            sock.close()
            raise TransferFailed(f"a caller left at once: {error}") from error


class TcpTransport:
    """Addresses are host:port, with port 0 any free one. `timeout` bounds a frame, in seconds."""

    def __init__(self, timeout: float, secure: Secure | None = None) -> None:
        self._timeout = timeout
        self._secure = secure

    def listen(self, address: str) -> TcpListener:
        host, port = _split(address)
        try:
            family = socket.AF_INET6 if ":" in host else socket.AF_INET
            sock = socket.create_server((host, port), family=family, backlog=64)
        except OSError as error:
            raise TransferFailed(f"cannot listen on {address}: {error}; set transfer.host") from error
        return TcpListener(sock, self._timeout, _as_it_is if self._secure is None else self._secure.server)

    def connect(self, address: str, timeout: float) -> TcpChannel:
        try:
            sock = socket.create_connection(_split(address), timeout)
        except OSError as error:
            raise TransferFailed(f"cannot connect to {address}: {error}") from error
        try:
            return TcpChannel(sock if self._secure is None else self._secure.client(sock), self._timeout)
        except OSError as error:
            sock.close()
            raise TransferFailed(f"cannot connect to {address}: {error}") from error


def _notice_its_end(sock: socket.socket) -> None:
    """A machine that is switched off says nothing: ask after it, and give up after `SILENCE` seconds."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    probes = 3
    for option, value in (
        ("TCP_KEEPIDLE", SILENCE - probes * PROBE_EVERY),
        ("TCP_KEEPINTVL", PROBE_EVERY),
        ("TCP_KEEPCNT", probes),
        ("TCP_USER_TIMEOUT", SILENCE * 1000),
    ):
        if hasattr(socket, option):  # not all systems have all of them
            sock.setsockopt(socket.IPPROTO_TCP, getattr(socket, option), value)


def _as_it_is(sock: socket.socket) -> socket.socket:
    return sock


def _split(address: str) -> tuple[str, int]:
    host, colon, port = address.rpartition(":")
    if not colon or not port.isdecimal() or int(port) > 65535:
        raise TransferFailed(f"{address!r} is not host:port")
    return host.removeprefix("[").removesuffix("]"), int(port)
