"""Frames through shared memory: for two processes on one host.

    source                        unix socket                       destination
    segment 0 … 3  ── SEGMENT slot, size, descriptor ──▶  maps it, once
    gather into one ── DATA slot, header ──────────────▶  scatters from it
    reused         ◀── RELEASE slot ────────────────────

A segment is anonymous POSIX memory (memfd) that belongs to the sender; the receiver gets a descriptor
over the socket. The socket's name is an abstract one. So neither has a name in a file system: the
kernel takes both back when the last process that has them open ends, however it ends.
A segment is sealed against shrinking, so that reading it never faults.
"""

from __future__ import annotations

import contextlib
import fcntl
import mmap
import os
import secrets
import socket
import time
import zlib
from collections import deque
from collections.abc import Callable

from engine.errors import TransferFailed
from migration.framing import DATA, RELEASE, SEGMENT, Head, Stream, pack
from migration.transport import MAX_PAYLOAD, Fill

SLOTS = 4
"""Segments of one sender and connection: one is filled while others are read."""

SMALLEST = 1 << 20
"""Bytes of a segment; sizes are powers of two."""

MOST_WAITING = 1024
"""Frames that may arrive while a segment is waited for."""

AVAILABLE = hasattr(os, "memfd_create") and hasattr(fcntl, "F_ADD_SEALS")


class Segment:
    """Shared memory of `size` bytes, mapped here."""

    def __init__(self, descriptor: int, size: int) -> None:
        self.size = size
        self.busy = False
        try:
            self._map = mmap.mmap(descriptor, size)
        except (OSError, ValueError) as error:
            raise TransferFailed(f"cannot map {size} bytes of shared memory: {error}") from error

    @classmethod
    def create(cls, nbytes: int) -> tuple[Segment, int]:
        """A segment that takes `nbytes` bytes, and its descriptor for the peer, to be closed."""
        size = max(SMALLEST, 1 << (nbytes - 1).bit_length())
        try:
            descriptor = os.memfd_create("tandem-kv", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        except OSError as error:
            raise TransferFailed(f"no shared memory: {error}; set transfer.transport to tcp") from error
        try:
            os.ftruncate(descriptor, size)
            fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW)
            return cls(descriptor, size), descriptor
        except (OSError, TransferFailed) as error:
            os.close(descriptor)
            raise TransferFailed(f"no shared memory: {error}; set transfer.transport to tcp") from error

    @classmethod
    def take(cls, descriptor: int, size: int) -> Segment:
        """One that a peer made. Raises TransferFailed if it could be cut off while it is read."""
        try:
            seals = fcntl.fcntl(descriptor, fcntl.F_GET_SEALS)
            whole = os.fstat(descriptor).st_size
            if not seals & fcntl.F_SEAL_SHRINK or whole != size or not SMALLEST <= size <= MAX_PAYLOAD:
                raise TransferFailed(f"a segment of {whole} bytes that should have {size}, sealed")
            return cls(descriptor, size)
        except OSError as error:
            raise TransferFailed(f"a descriptor that is no segment: {error}") from error
        finally:
            os.close(descriptor)

    def view(self, nbytes: int) -> memoryview:
        return memoryview(self._map)[:nbytes]

    def close(self) -> None:
        with contextlib.suppress(BufferError):  # somebody still reads: it goes with the last view
            self._map.close()


class ShmFrame:
    """Its payload is the sender's memory: the sender may use it again after `release`."""

    def __init__(self, header: bytes, payload: memoryview | None, done: Callable[[], None]) -> None:
        self.header = header
        self.payload = payload
        self._done = done

    def release(self) -> None:
        if self.payload is not None:
            self.payload.release()
            self.payload = None
            self._done()


class ShmChannel:
    """See `transport.Channel`."""

    tamper: Fill | None = None

    def __init__(self, sock: socket.socket, timeout: float) -> None:
        self._timeout = timeout
        self._stream = Stream(sock, timeout, descriptors=True)
        self._mine: list[Segment] = []
        self._theirs: dict[int, Segment] = {}
        self._inbox: deque[Head] = deque()
        self.fileno = self._stream.fileno
        self.trust = self._stream.trust

    @property
    def pending(self) -> bool:
        return bool(self._inbox)

    def send(self, header: bytes, nbytes: int = 0, fill: Fill | None = None) -> None:
        if not nbytes:
            self._stream.write(pack(DATA, 0, header, 0, 0))
            return
        slot = self._slot(nbytes)
        segment = self._mine[slot]
        with segment.view(nbytes) as payload:
            if fill is not None:
                fill(payload)
            checksum = zlib.crc32(payload)
            if self.tamper is not None:
                self.tamper(payload)
        segment.busy = True
        self._stream.write(pack(DATA, slot, header, nbytes, checksum))

    def receive(self, timeout: float) -> ShmFrame | None:
        deadline = time.monotonic() + timeout
        while not self._inbox:
            if not self._pump(deadline - time.monotonic()):
                return None
        head = self._inbox.popleft()
        if not head.nbytes:
            return ShmFrame(head.header, memoryview(b""), lambda: None)
        segment = self._theirs.get(head.slot)
        if segment is None or head.nbytes > segment.size:
            raise TransferFailed(f"{head.nbytes} bytes in segment {head.slot}, which has not so many")
        payload = segment.view(head.nbytes)
        if zlib.crc32(payload) != head.checksum:
            payload.release()
            self._release(head.slot)
            return ShmFrame(head.header, None, lambda: None)
        return ShmFrame(head.header, payload, lambda: self._release(head.slot))

    def close(self) -> None:
        self._stream.close()
        for segment in (*self._mine, *self._theirs.values()):
            segment.close()
        self._mine.clear()
        self._theirs.clear()

    def _release(self, slot: int) -> None:
        self._stream.write(pack(RELEASE, slot, b"", 0, 0))

    def _slot(self, nbytes: int) -> int:
        """A segment of `nbytes` bytes or more that nobody reads."""
        deadline = time.monotonic() + self._timeout
        while True:
            free = [slot for slot, segment in enumerate(self._mine) if not segment.busy]
            for slot in free:
                if self._mine[slot].size >= nbytes:
                    return slot
            if free or len(self._mine) < SLOTS:
                return self._offer(nbytes, free[0] if free else len(self._mine))
            if not self._pump(deadline - time.monotonic()):
                raise TransferFailed(f"the peer has not read a segment for {self._timeout:g} s")

    def _offer(self, nbytes: int, slot: int) -> int:
        segment, descriptor = Segment.create(nbytes)
        try:
            if slot < len(self._mine):
                self._mine[slot].close()
                self._mine[slot] = segment
            else:
                self._mine.append(segment)
            size = segment.size.to_bytes(8, "big")
            self._stream.write(pack(SEGMENT, slot, size, 0, 0), descriptor=descriptor)
        finally:
            os.close(descriptor)
        return slot

    def _pump(self, timeout: float) -> bool:
        """Read one frame of any kind; False if none came in time."""
        head = self._stream.read(timeout)
        if head is None:
            return False
        wanted = self._stream.trusted and head.kind == SEGMENT and head.slot < SLOTS
        taken = wanted and len(head.descriptors) == 1
        for descriptor in () if taken else head.descriptors:
            os.close(descriptor)
        if head.kind == DATA and len(self._inbox) < MOST_WAITING:
            self._inbox.append(head)
        elif head.kind == RELEASE and head.slot < len(self._mine):
            self._mine[head.slot].busy = False
        elif taken:
            segment = Segment.take(head.descriptors[0], int.from_bytes(head.header, "big"))
            old = self._theirs.pop(head.slot, None)
            if old is not None:
                old.close()
            self._theirs[head.slot] = segment
        else:
            raise TransferFailed(f"a frame of kind {head.kind} for slot {head.slot} out of turn")
        return True


class ShmListener:
    """See `transport.Listener`."""

    def __init__(self, sock: socket.socket, address: str, timeout: float) -> None:
        self._sock = sock
        self._timeout = timeout
        self.address = address
        self.fileno = sock.fileno
        self.close = sock.close

    def accept(self) -> ShmChannel:
        try:
            sock, _ = self._sock.accept()
        except OSError as error:
            raise TransferFailed(f"nobody to accept: {error}") from error
        return ShmChannel(sock, self._timeout)


class ShmTransport:
    """Addresses are names of abstract unix sockets; "" makes one up. `timeout` bounds a frame, in seconds."""

    def __init__(self, timeout: float) -> None:
        self._timeout = timeout

    def listen(self, address: str) -> ShmListener:
        if not AVAILABLE:
            raise TransferFailed("this system has no memfd: set transfer.transport to tcp")
        address = address or f"tandem-{os.getpid()}-{secrets.token_hex(4)}"
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            sock.bind("\0" + address)
            sock.listen(64)
        except OSError as error:
            sock.close()
            raise TransferFailed(f"cannot listen on {address}: {error}") from error
        return ShmListener(sock, address, self._timeout)

    def connect(self, address: str, timeout: float) -> ShmChannel:
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        sock.settimeout(timeout)
        try:
            sock.connect("\0" + address)
        except OSError as error:
            sock.close()
            raise TransferFailed(f"cannot connect to {address}: {error}") from error
        return ShmChannel(sock, self._timeout)
