"""One thread that owns a connection and all sessions on it, so that none of them needs a lock.

                  ┌── post(letter): from the engine loop, from claims, from whoever
open ─▶ ┌─▶ letters ─▶ frames ─▶ ticks ─▶ wait ─┐
        └───────────────────────────────────────┘   broken: the handler is told, and the thread goes on
                                                     until no session needs it any more
"""

from __future__ import annotations

import contextlib
import logging
import math
import select
import socket
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Protocol

from engine.errors import MovementError
from migration.handshake import Agreement
from migration.transport import Channel, Fill, Frame

log = logging.getLogger(__name__)

FRAMES = 16
"""Frames taken in before letters are looked at again."""


class Handler(Protocol):
    """The sessions of a link. Everything is called in the link's thread."""

    @property
    def busy(self) -> bool:
        """Whether a session is not over yet."""

    @property
    def wake(self) -> float:
        """When `tick` is due, on time.monotonic."""

    def frame(self, frame: Frame) -> None: ...
    def tick(self, now: float) -> None: ...
    def lost(self, reason: str) -> None: ...


class Link:
    """`connect` opens the channel, in the link's thread; `ended` is called as its last act.

    `agreed` is what the handshake said, None before it or if there was none.
    """

    def __init__(
        self,
        name: str,
        connect: Callable[[], tuple[Channel, Agreement]],
        handler: Callable[[Link], Handler],
        ended: Callable[[Link], None] = lambda link: None,
    ) -> None:
        self.broken: str | None = None
        self.agreed: Agreement | None = None
        self.handler = handler(self)
        self._connect = connect
        self._ended = ended
        self._channel: Channel | None = None
        self._letters: deque[Callable[[], None]] = deque()
        self._door = threading.Lock()
        self._closed = False
        self._given_up = math.inf
        self._ear, self._bell = socket.socketpair()
        self._ear.setblocking(False)
        self._bell.setblocking(False)
        self._thread = threading.Thread(target=self._main, name=name, daemon=True)

    def start(self) -> None:
        """Raises OSError or RuntimeError if there can be no thread; the link is over then."""
        try:
            self._thread.start()
        except BaseException:
            self._ear.close()
            self._bell.close()
            raise

    def post(self, letter: Callable[[], None]) -> bool:
        """Run `letter` in the link's thread; False if that has ended. Never blocks."""
        with self._door:
            if self._closed:
                return False
            self._letters.append(letter)
            with contextlib.suppress(BlockingIOError):  # it has been rung often enough
                self._bell.send(b"\0")
        return True

    def send(self, header: bytes, nbytes: int = 0, fill: Fill | None = None) -> bool:
        """In the link's thread. False if it is broken, or breaks on this: the handler hears of it later."""
        if self._channel is None or self.broken is not None:
            return False
        try:
            self._channel.send(header, nbytes, fill)
        except MovementError as error:
            self.broken = error.message
        return self.broken is None

    def stop(self, timeout: float) -> None:
        """Break the link. Sessions that are in doubt may take up to `timeout` seconds more."""

        def letter() -> None:
            self._given_up = time.monotonic() + timeout
            self.broken = self.broken or "the instance stops"

        self.post(letter)

    def join(self, timeout: float) -> bool:
        """Whether the thread has ended within `timeout` seconds."""
        self._thread.join(timeout)
        return not self._thread.is_alive()

    def _main(self) -> None:
        told = False
        try:
            self._channel, self.agreed = self._connect()
        except Exception as error:
            self._fail(error)
        while not self._over():
            try:
                if self.broken is None:
                    self._wait()
                    self._receive()
                elif not told:
                    told = True
                    log.info("link %s: %s", self._thread.name, self.broken)
                    self.handler.lost(self.broken)
                elif not self._letters:
                    self._wait()
                self._read_letters()
                self.handler.tick(time.monotonic())
            except Exception as error:
                self._fail(error)
        if self._channel is not None:
            self._channel.close()
        self._ear.close()
        self._bell.close()
        self._ended(self)

    def _fail(self, error: Exception) -> None:
        if not isinstance(error, MovementError):
            log.exception("link %s", self._thread.name, exc_info=error)
        self.broken = self.broken or str(error) or type(error).__name__

    def _over(self) -> bool:
        with self._door:
            idle = self.broken is not None and not self._letters and not self.handler.busy
            self._closed = idle or time.monotonic() >= self._given_up
            return self._closed

    def _wait(self) -> None:
        """Until a frame, a letter or the next tick."""
        if self._letters:
            return
        channel = self._channel if self.broken is None else None
        if channel is not None and channel.pending:
            return
        poll = select.poll()
        poll.register(self._ear, select.POLLIN)
        if channel is not None:
            poll.register(channel.fileno(), select.POLLIN)
        left = min(self.handler.wake, self._given_up) - time.monotonic()
        poll.poll(None if left == math.inf else math.ceil(max(0.0, left) * 1000))

    def _receive(self) -> None:
        assert self._channel is not None
        for _ in range(FRAMES):
            frame = self._channel.receive(0.0)
            if frame is None:
                return
            try:
                self.handler.frame(frame)
            finally:
                frame.release()
            if self.broken is not None:
                return

    def _read_letters(self) -> None:
        with contextlib.suppress(BlockingIOError):
            self._ear.recv(4096)
        while self._letters:
            self._letters.popleft()()
