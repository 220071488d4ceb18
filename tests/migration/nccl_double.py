"""A GPU and its NCCL as `migration.nccl.Device` sees them, of host memory and sockets for real processes.

What it keeps of the real ones is what the transport must cope with: joining waits for the other end, sending
and receiving are begun and not waited for, their order on a communicator is that of the calls, a peer that
does not take part holds them up for ever, and only `abort` ends that.
"""

from __future__ import annotations

import contextlib
import queue
import secrets
import socket
import threading
import zlib
from collections.abc import Callable

from engine.errors import TransferFailed
from migration.nccl import CALLER, Event
from migration.transport import Fill

Work = Callable[[], None]


class DoneEvent:
    """Something that a thread does."""

    def __init__(self) -> None:
        self.finished = threading.Event()
        self.failure: str | None = None

    def done(self) -> bool:
        if self.failure is not None:
            raise TransferFailed(f"NCCL failed: {self.failure}")
        return self.finished.is_set()


class DoublePair:
    """See `nccl.Communicator`: one thread stands for its stream."""

    def __init__(self, sock: socket.socket) -> None:
        self.aborted = threading.Event()
        self.held = threading.Event()
        self.held.set()
        self._sock = sock
        self._work: queue.SimpleQueue[tuple[DoneEvent, Work] | None] = queue.SimpleQueue()
        threading.Thread(target=self._stream, name="nccl-double", daemon=True).start()

    def send(self, memory: memoryview) -> Event:
        return self._enqueue(lambda: self._sock.sendall(memory))

    def receive(self, memory: memoryview, after: Event | None) -> Event:
        def run() -> None:
            view = memory
            while view:
                count = self._sock.recv_into(view)
                if not count:
                    raise OSError("the peer is gone")
                view = view[count:]

        return self._enqueue(run)

    def abort(self) -> None:
        self.aborted.set()
        self.held.set()
        with contextlib.suppress(OSError):
            self._sock.shutdown(socket.SHUT_RDWR)
        self._work.put(None)

    def _enqueue(self, work: Work) -> Event:
        if self.aborted.is_set():
            raise TransferFailed("NCCL failed: the communicator was aborted")
        event = DoneEvent()
        self._work.put((event, work))
        return event

    def _stream(self) -> None:
        while (order := self._work.get()) is not None:
            event, work = order
            self.held.wait()
            try:
                if self.aborted.is_set():
                    raise OSError("aborted")
                work()
                event.finished.set()
            except OSError as error:
                event.failure = str(error)
        self._sock.close()


class DoubleDevice:
    """See `nccl.Device`. Pairs meet at an abstract unix socket, whose name is the unique id.

    Joining waits for `joining`, and tries so many times, 5 ms apart, to find the other end.
    """

    def __init__(self, tries: int = 2000) -> None:
        self._tries = tries
        self.pairs: list[DoublePair] = []
        self.joining = threading.Event()
        self.joining.set()
        self.fills = 0

    def joined(self) -> None:
        """Let those join who wait, and wait until they have: then nothing of them is left behind."""
        self.joining.set()
        for _ in range(2000):
            if self.pairs:
                return
            threading.Event().wait(0.005)
        raise AssertionError("nobody ever joined")

    def unique_id(self) -> bytes:
        return b"\0tandem-nccl-double-" + secrets.token_hex(8).encode()

    def join(self, unique_id: bytes, rank: int) -> DoublePair:
        self.joining.wait()
        if rank == CALLER:
            with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as server:
                server.bind(unique_id)
                server.listen(1)
                sock, _ = server.accept()
        else:
            sock = self._knock(unique_id)
        pair = DoublePair(sock)
        self.pairs.append(pair)
        return pair

    def _knock(self, unique_id: bytes) -> socket.socket:
        """As long as the caller has not begun to listen."""
        for _ in range(self._tries):
            sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            try:
                sock.connect(unique_id)
            except OSError:
                sock.close()
                threading.Event().wait(0.005)
            else:
                return sock
        raise TransferFailed("nobody is there to meet")

    def memory(self, nbytes: int) -> memoryview:
        return memoryview(bytearray(nbytes))

    def part(self, memory: memoryview, nbytes: int) -> memoryview:
        return memory[:nbytes]

    def fill(self, memory: memoryview, fill: Fill) -> None:
        self.fills += 1
        fill(memory)

    def checksum(self, memory: memoryview) -> int:
        return zlib.crc32(memory)

    def mark(self) -> Event:
        event = DoneEvent()
        event.finished.set()
        return event
