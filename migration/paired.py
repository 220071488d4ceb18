"""Frames whose payload takes another road than their header: control over TCP, KV from memory to memory.

    caller                               TCP                               listener
    MEET greeting ──────────────────────────────▶ both join the road, once the handshake is over
    ROOM nbytes ────────────────────────────────▶ takes memory
             ◀────────────────── OFFER slot, what a sender must know of it
    payload into the slot ══════ the road ══════▶
    DATA slot, header, length, checksum ────────▶ receives from the road, checks, hands it on
             ◀───────────────────────────── RELEASE slot

So lengths, checksums, order and the end of a peer are those of any transport, and no wait is without an end:
what the road has not done in time is given up, and with it the connection.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, TypeVar

from engine.errors import TransferFailed
from migration.framing import DATA, RELEASE, Head, Stream, pack
from migration.tcp import TcpTransport
from migration.transport import MAX_PAYLOAD, Buffer, Fill

T = TypeVar("T")

MEET, ROOM, OFFER = range(16, 19)

SLOTS = 4
"""Pieces of memory at each end of a connection: one is filled while others are on their way."""

SMALLEST = 1 << 20
"""Bytes of a slot; sizes are powers of two."""

MOST_WAITING = 1024
"""Frames that may arrive while a slot is waited for."""


class Road(Protocol):
    """Moves the bytes of one connection. Everything raises TransferFailed when it cannot go on.

    The caller sends, the listener receives. Slots are numbered from 0 and have a piece of memory at each end.
    """

    def greeting(self) -> bytes:
        """Caller: what the listener needs to join."""

    def join(self, greeting: bytes, *, calls: bool) -> None:
        """Both ends; may wait for the other. Called in a thread that is given up when it takes too long."""

    def room(self, slot: int, nbytes: int) -> bytes:
        """Listener: memory for a slot; what the caller must know of it."""

    def offered(self, slot: int, nbytes: int, description: bytes) -> None:
        """Caller: the slot of the listener's that will have `nbytes` bytes."""

    def fill(self, slot: int, nbytes: int, fill: Fill | None, tamper: Fill | None) -> int:
        """Caller: write a payload into its memory of the slot. The checksum, taken before `tamper`."""

    def send(self, slot: int, nbytes: int, timeout: float) -> None:
        """Caller: once this returns the listener may be told of the payload."""

    def receive(self, slot: int, nbytes: int, timeout: float) -> tuple[Buffer, int]:
        """Listener: the payload that it was told of, and its checksum."""

    def read(self, slot: int) -> None:
        """Listener: nobody will ask for more of the payload, though copies of it may be under way."""

    def abort(self) -> None:
        """Give everything up that is under way; twice does no harm."""


class PairedFrame:
    """Its payload is the receiver's slot, which the sender may fill again after `release`."""

    def __init__(self, header: bytes, payload: Buffer | None, done: Callable[[], None]) -> None:
        self.header = header
        self.payload = payload
        self._done = done

    def release(self) -> None:
        if self.payload is not None:
            self.payload = None
            self._done()


@dataclass(slots=True)
class _Slot:
    nbytes: int
    busy: bool = False


class PairedChannel:
    """See `transport.Channel`."""

    tamper: Fill | None = None

    def __init__(self, stream: Stream, road: Road, timeout: float, *, calls: bool) -> None:
        self._stream = stream
        self._road = road
        self._timeout = timeout
        self._calls = calls
        self._slots: list[_Slot] = []
        self._inbox: deque[Head] = deque()
        self.fileno = stream.fileno

    @property
    def pending(self) -> bool:
        return bool(self._inbox) or self._stream.pending

    def trust(self) -> None:
        """Also joins the road: only now is it known who is at the other end."""
        self._stream.trust()
        if self._calls:
            greeting = self._road.greeting()
            self._stream.write(pack(MEET, 0, greeting, 0, 0))
        else:
            head = self._stream.read(self._timeout)
            if head is None or head.kind != MEET:
                raise TransferFailed("the caller does not say where to meet")
            greeting = head.header
        self._bounded(lambda: self._road.join(greeting, calls=self._calls))

    def send(self, header: bytes, nbytes: int = 0, fill: Fill | None = None) -> None:
        if not nbytes:
            self._stream.write(pack(DATA, 0, header, 0, 0))
            return
        if not self._calls:
            raise TransferFailed("a listener sends no payloads")
        number = self._slot(nbytes)
        checksum = self._road.fill(number, nbytes, fill, self.tamper)
        self._slots[number].busy = True
        self._giving_up(lambda: self._road.send(number, nbytes, self._timeout))
        self._stream.write(pack(DATA, number, header, nbytes, checksum))

    def receive(self, timeout: float) -> PairedFrame | None:
        deadline = time.monotonic() + timeout
        while not self._inbox:
            if not self._pump(deadline - time.monotonic()):
                return None
        head = self._inbox.popleft()
        number, nbytes = head.slot, head.nbytes
        if not nbytes:
            return PairedFrame(head.header, memoryview(b""), lambda: None)
        if self._calls or number >= len(self._slots) or nbytes > self._slots[number].nbytes:
            raise TransferFailed(f"{nbytes} bytes in slot {number}, which has not so many")
        payload, checksum = self._giving_up(lambda: self._road.receive(number, nbytes, self._timeout))
        if checksum != head.checksum:
            self._release(number)
            return PairedFrame(head.header, None, lambda: None)
        return PairedFrame(head.header, payload, lambda: self._release(number))

    def close(self) -> None:
        self._road.abort()
        self._stream.close()

    def _release(self, number: int) -> None:
        self._road.read(number)
        self._stream.write(pack(RELEASE, number, b"", 0, 0))

    def _slot(self, nbytes: int) -> int:
        """A slot of `nbytes` bytes or more that nobody reads."""
        deadline = time.monotonic() + self._timeout
        while self._pump(0.0):
            pass
        while True:
            free = [number for number, slot in enumerate(self._slots) if not slot.busy]
            for number in free:
                if self._slots[number].nbytes >= nbytes:
                    return number
            if free or len(self._slots) < SLOTS:
                return self._ask(nbytes, free[0] if free else len(self._slots), deadline)
            self._wait(deadline)

    def _ask(self, nbytes: int, number: int, deadline: float) -> int:
        size = max(SMALLEST, 1 << (nbytes - 1).bit_length())
        wanted = _Slot(size, busy=True)
        self._slots[number:] = [wanted, *self._slots[number + 1 :]]
        self._stream.write(pack(ROOM, number, size.to_bytes(8, "big"), 0, 0))
        while wanted.busy:
            self._wait(deadline)
        return number

    def _wait(self, deadline: float) -> None:
        if not self._pump(deadline - time.monotonic()):
            self._road.abort()
            raise TransferFailed(f"the peer has not read a payload for {self._timeout:g} s")

    def _pump(self, timeout: float) -> bool:
        """Read one frame of any kind; False if none came in time."""
        head = self._stream.read(timeout)
        if head is None:
            return False
        if head.kind == DATA and len(self._inbox) < MOST_WAITING:
            self._inbox.append(head)
        elif head.kind == RELEASE and self._calls and head.slot < len(self._slots):
            self._slots[head.slot].busy = False
        elif head.kind == OFFER and self._calls and head.slot < len(self._slots):
            slot = self._slots[head.slot]
            self._road.offered(head.slot, slot.nbytes, head.header)
            slot.busy = False
        elif head.kind == ROOM and not self._calls and head.slot <= len(self._slots):
            self._make_room(head)
        else:
            raise TransferFailed(f"a frame of kind {head.kind} for slot {head.slot} out of turn")
        return True

    def _make_room(self, head: Head) -> None:
        size = int.from_bytes(head.header, "big")
        if not SMALLEST <= size <= MAX_PAYLOAD or head.slot >= SLOTS:
            raise TransferFailed(f"{size} bytes asked for slot {head.slot}, at most {MAX_PAYLOAD} are given")
        self._slots[head.slot :] = [_Slot(size), *self._slots[head.slot + 1 :]]
        self._stream.write(pack(OFFER, head.slot, self._road.room(head.slot, size), 0, 0))

    def _giving_up(self, work: Callable[[], T]) -> T:
        try:
            return work()
        except TransferFailed:
            self._road.abort()
            raise

    def _bounded(self, work: Callable[[], None]) -> None:
        """Do what cannot be interrupted. Raises TransferFailed if it fails or takes too long: then its thread
        goes on alone until the road lets go of it."""
        failed: list[BaseException] = []

        def run() -> None:
            try:
                work()
            except BaseException as error:
                failed.append(error)

        thread = threading.Thread(target=run, name="meeting", daemon=True)
        thread.start()
        thread.join(self._timeout)
        if thread.is_alive() or failed:
            self._road.abort()
        if thread.is_alive():
            raise TransferFailed(f"the two ends have not met within {self._timeout:g} s")
        if failed:
            raise TransferFailed(f"the two ends cannot meet: {failed[0]}") from failed[0]


class PairedListener:
    """See `transport.Listener`."""

    def __init__(self, inner: TcpTransport, address: str, road: Callable[[], Road], timeout: float) -> None:
        self._inner = inner.listen(address)
        self._road = road
        self._timeout = timeout
        self.address = self._inner.address
        self.fileno = self._inner.fileno
        self.close = self._inner.close

    def accept(self) -> PairedChannel:
        stream = self._inner.accept().stream
        return PairedChannel(stream, self._road(), self._timeout, calls=False)


class PairedTransport:
    """Addresses are those of `control`. `road` makes one for each connection; `timeout` bounds a frame."""

    def __init__(self, control: TcpTransport, road: Callable[[], Road], timeout: float) -> None:
        self._control = control
        self._road = road
        self._timeout = timeout

    def listen(self, address: str) -> PairedListener:
        return PairedListener(self._control, address, self._road, self._timeout)

    def connect(self, address: str, timeout: float) -> PairedChannel:
        stream = self._control.connect(address, timeout).stream
        return PairedChannel(stream, self._road(), self._timeout, calls=True)
