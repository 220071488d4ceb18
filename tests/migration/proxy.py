"""A TCP connection that can be cut, stalled or damaged on its way."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Iterator

from tests.migration.pair import BOUND

FORTH, BACK = 0, 1


class Proxy:
    """Listens at `address` and passes everything on to `target`, host:port."""

    def __init__(self, target: str) -> None:
        host, _, port = target.rpartition(":")
        self._target = host, int(port)
        self._server = socket.create_server(("127.0.0.1", 0))
        self._sockets: list[socket.socket] = []
        self._threads: list[threading.Thread] = []
        self.changed = threading.Condition()
        self.passed = [0, 0]
        self.stalled = [False, False]
        self.flips: list[int] = []
        self.connections = 0
        self.address = f"127.0.0.1:{self._server.getsockname()[1]}"
        self._spawn(self._serve)

    def flip(self, after: int) -> None:
        """Turn a bit of the byte that comes `after` bytes from now on the way forth."""
        with self.changed:
            self.flips.append(self.passed[FORTH] + after)

    def stall(self, *directions: int) -> None:
        """Pass nothing on any more and say nothing."""
        with self.changed:
            for direction in directions:
                self.stalled[direction] = True

    def cut(self) -> None:
        """Close all connections; new ones are taken."""
        with self.changed:
            sockets, self._sockets = self._sockets, []
        for sock in sockets:
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)

    def wait(self, forth: int) -> None:
        """Until so many bytes have gone forth."""
        with self.changed:
            assert self.changed.wait_for(lambda: self.passed[FORTH] >= forth, BOUND)

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._server.shutdown(socket.SHUT_RDWR)
        self._server.close()
        self.cut()
        for thread in self._threads:
            thread.join(BOUND)

    def _spawn(self, target: object, *arguments: object) -> None:
        thread = threading.Thread(target=target, args=arguments, daemon=True)  # type: ignore[arg-type]
        self._threads.append(thread)
        thread.start()

    def _serve(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                near, _ = self._server.accept()
                far = socket.create_connection(self._target)
                with self.changed:
                    self._sockets += [near, far]
                    self.connections += 1
                self._spawn(self._pump, near, far, FORTH)
                self._spawn(self._pump, far, near, BACK)

    def _pump(self, source: socket.socket, target: socket.socket, direction: int) -> None:
        with contextlib.suppress(OSError):
            while data := bytearray(source.recv(1 << 16)):
                with self.changed:
                    start = self.passed[direction]
                    self.passed[direction] += len(data)
                    for at in self.flips if direction == FORTH else ():
                        if start <= at < start + len(data):
                            data[at - start] ^= 0x10
                    stalled = self.stalled[direction]
                    self.changed.notify_all()
                if not stalled:
                    target.sendall(data)
        with contextlib.suppress(OSError):
            target.shutdown(socket.SHUT_RDWR)
        source.close()


@contextlib.contextmanager
def proxy(target: str) -> Iterator[Proxy]:
    one = Proxy(target)
    try:
        yield one
    finally:
        one.close()
