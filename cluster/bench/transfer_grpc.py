"""The same frames over a stream of gRPC: what `tcp` would be if it were that. For comparison only.

send ─▶ queue ─▶ stream of messages ─▶ receive      each message is prefix, header and payload
"""

from __future__ import annotations

import contextlib
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from queue import Full, Queue

import grpc

from engine.errors import TransferFailed
from migration.framing import DATA, PREFIX, pack
from migration.tcp import TcpFrame
from migration.transport import MAX_PAYLOAD, Fill

METHOD = "/tandem.bench.Frames/Exchange"
WAITING = 2
"""Messages that may wait to be sent."""

OPTIONS = [
    ("grpc.max_send_message_length", 2 * MAX_PAYLOAD),
    ("grpc.max_receive_message_length", 2 * MAX_PAYLOAD),
]
LONGEST = 60.0
"""Seconds that a message may wait for the other end."""
CONNECTED = 600.0
"""Seconds that a connection may last."""


class GrpcChannel:
    """See `transport.Channel`; what it receives comes from `messages`."""

    tamper: Fill | None = None
    pending = False

    def __init__(self, messages: Iterator[bytes] = iter(()), line: grpc.Channel | None = None) -> None:
        self.messages = messages
        self._line = line
        self._out: Queue[bytes | None] = Queue(WAITING)

    def outgoing(self) -> Iterator[bytes]:
        while (message := self._out.get(timeout=LONGEST)) is not None:
            yield message

    def send(self, header: bytes, nbytes: int = 0, fill: Fill | None = None) -> None:
        payload = bytearray(nbytes)
        if fill is not None:
            fill(memoryview(payload))
        message = b"".join((pack(DATA, 0, header, nbytes, zlib.crc32(payload)), payload))
        try:
            self._out.put(message, timeout=LONGEST)
        except Full:
            raise TransferFailed(f"the peer takes nothing for {LONGEST:g} s") from None

    def receive(self, timeout: float) -> TcpFrame | None:
        """Waits for as long as the connection may last."""
        try:
            message = memoryview(next(self.messages))
        except (StopIteration, grpc.RpcError) as error:
            raise TransferFailed(f"the connection is gone: {error}") from error
        _, _, _, length, nbytes, checksum, _ = PREFIX.unpack_from(message)
        start = PREFIX.size + length
        payload = message[start : start + nbytes]
        return TcpFrame(
            bytes(message[PREFIX.size : start]), payload if zlib.crc32(payload) == checksum else None
        )

    def fileno(self) -> int:
        raise TransferFailed("a stream of gRPC has no descriptor")

    def trust(self) -> None:
        """There is nothing to be careful of."""

    def close(self) -> None:
        with contextlib.suppress(Full):
            self._out.put(None, timeout=1.0)
        if self._line is not None:
            self._line.close()


class GrpcListener:
    """See `transport.Listener`."""

    def __init__(self, address: str) -> None:
        self._come: Queue[GrpcChannel] = Queue()
        self._server = grpc.server(ThreadPoolExecutor(2), options=OPTIONS)
        handler = grpc.stream_stream_rpc_method_handler(self._exchange)
        service, name = METHOD[1:].split("/")
        self._server.add_generic_rpc_handlers(
            (grpc.method_handlers_generic_handler(service, {name: handler}),)
        )
        port = self._server.add_insecure_port(address)
        self._server.start()
        self.address = f"{address.rpartition(':')[0]}:{port}"

    def _exchange(self, messages: Iterator[bytes], context: grpc.ServicerContext) -> Iterator[bytes]:
        channel = GrpcChannel(messages)
        self._come.put(channel)
        yield from channel.outgoing()

    def fileno(self) -> int:
        raise TransferFailed("a gRPC server has no descriptor")

    def accept(self) -> GrpcChannel:
        return self._come.get(timeout=LONGEST)

    def close(self) -> None:
        self._server.stop(1.0).wait(LONGEST)


class GrpcTransport:
    """See `transport.Transport`."""

    def listen(self, address: str) -> GrpcListener:
        return GrpcListener(address)

    def connect(self, address: str, timeout: float) -> GrpcChannel:
        line = grpc.insecure_channel(address, options=OPTIONS)
        try:
            grpc.channel_ready_future(line).result(timeout)
        except grpc.FutureTimeoutError as error:
            raise TransferFailed(f"{address} does not answer in {timeout:g} s") from error
        channel = GrpcChannel(line=line)
        channel.messages = line.stream_stream(METHOD)(channel.outgoing(), timeout=CONNECTED)
        return channel
