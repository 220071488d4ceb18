"""Frames over plain TCP: for any two hosts. The payload follows its header on the stream."""

from __future__ import annotations

import socket
import zlib

from engine.errors import TransferFailed
from migration.framing import DATA, Stream, pack
from migration.transport import Fill


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
    """See `transport.Channel`. Two buffers, one each way, as large as the largest payload so far."""

    pending = False
    tamper: Fill | None = None

    def __init__(self, sock: socket.socket, timeout: float) -> None:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._stream = Stream(sock, timeout)
        self._out = bytearray()
        self._in = bytearray()
        self.fileno = self._stream.fileno
        self.trust = self._stream.trust
        self.close = self._stream.close

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

    def __init__(self, sock: socket.socket, timeout: float) -> None:
        self._sock = sock
        self._timeout = timeout
        host, port = sock.getsockname()[:2]
        self.address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        self.fileno = sock.fileno
        self.close = sock.close

    def accept(self) -> TcpChannel:
        try:
            sock, _ = self._sock.accept()
        except OSError as error:
            raise TransferFailed(f"nobody to accept: {error}") from error
        return TcpChannel(sock, self._timeout)


class TcpTransport:
    """Addresses are host:port, with port 0 any free one. `timeout` bounds a frame, in seconds."""

    def __init__(self, timeout: float) -> None:
        self._timeout = timeout

    def listen(self, address: str) -> TcpListener:
        host, port = _split(address)
        try:
            family = socket.AF_INET6 if ":" in host else socket.AF_INET
            return TcpListener(socket.create_server((host, port), family=family, backlog=64), self._timeout)
        except OSError as error:
            raise TransferFailed(f"cannot listen on {address}: {error}; set transfer.host") from error

    def connect(self, address: str, timeout: float) -> TcpChannel:
        try:
            return TcpChannel(socket.create_connection(_split(address), timeout), self._timeout)
        except OSError as error:
            raise TransferFailed(f"cannot connect to {address}: {error}") from error


def _split(address: str) -> tuple[str, int]:
    host, colon, port = address.rpartition(":")
    if not colon or not port.isdecimal() or int(port) > 65535:
        raise TransferFailed(f"{address!r} is not host:port")
    return host.removeprefix("[").removesuffix("]"), int(port)
