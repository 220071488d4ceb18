"""KV from GPU to GPU through NCCL: a communicator of two for each connection, given up when it hangs.

    caller    fill slot (gather, checksum) on a stream of its own ─▶ ncclSend on another, not waited for
    listener  ncclRecv on its stream, after the last readers of the slot ─▶ event, waited for with a bound

The slots take turns, so that one is gathered while another is on its way, and both while the model computes.
What NCCL and CUDA do stands behind `Device`: see nccl_device.py. NCCL calls cannot be interrupted, but a
communicator can be aborted from outside: whatever is not done in time ends so, and its connection with it.
"""

from __future__ import annotations

import time
from functools import partial
from typing import Protocol

from engine.errors import TransferFailed
from migration.paired import PairedTransport
from migration.tcp import TcpTransport
from migration.transport import Buffer, Fill

CALLER, LISTENER = 0, 1
"""Ranks of the two ends."""

POLL = 2e-5, 1e-3
"""Seconds between two looks at an event: at first, and at most."""


class Event(Protocol):
    """A point in what a stream does."""

    def done(self) -> bool:
        """Whether all before it is done. Raises TransferFailed if something failed."""


class Communicator(Protocol):
    """Two ends; what it is told is done one after another on a stream of its own."""

    def send(self, memory: Buffer) -> Event: ...

    def receive(self, memory: Buffer, after: Event | None) -> Event:
        """Begins only after `after`."""

    def abort(self) -> None:
        """Ends what is under way, at this end, without waiting for the other."""


class Device(Protocol):
    """One GPU, as far as transfers need it."""

    def unique_id(self) -> bytes:
        """A new place to meet at."""

    def join(self, unique_id: bytes, rank: int) -> Communicator:
        """Waits until the other end has joined."""

    def memory(self, nbytes: int) -> Buffer: ...

    def part(self, memory: Buffer, nbytes: int) -> Buffer:
        """The first `nbytes` bytes of a piece of memory."""

    def fill(self, memory: Buffer, fill: Fill) -> None:
        """Have `fill` write into it, off the stream on which the model computes, and wait for that alone."""

    def checksum(self, memory: Buffer) -> int:
        """32 bits that depend on every byte and its place."""

    def mark(self) -> Event:
        """The point after all that this thread has asked of the device."""


class NcclRoad:
    """See `paired.Road`."""

    def __init__(self, device: Device) -> None:
        self._device = device
        self._communicator: Communicator | None = None
        self._aborted = False
        self._memory: dict[int, Buffer] = {}
        self._sent: dict[int, Event] = {}
        self._read: dict[int, Event] = {}

    def greeting(self) -> bytes:
        return self._device.unique_id()

    def join(self, greeting: bytes, *, calls: bool) -> None:
        communicator = self._device.join(greeting, CALLER if calls else LISTENER)
        self._communicator = communicator
        if self._aborted:  # it took too long, and nobody waits any more
            communicator.abort()

    def room(self, slot: int, nbytes: int) -> bytes:
        self._memory[slot] = self._device.memory(nbytes)
        return b""

    def offered(self, slot: int, nbytes: int, description: bytes) -> None:
        self._memory[slot] = self._device.memory(nbytes)

    def fill(self, slot: int, nbytes: int, fill: Fill | None, tamper: Fill | None) -> int:
        memory = self._device.part(self._memory[slot], nbytes)
        if fill is not None:
            self._device.fill(memory, fill)
        checksum = self._device.checksum(memory)
        if tamper is not None:
            self._device.fill(memory, tamper)
        return checksum

    def send(self, slot: int, nbytes: int, timeout: float) -> None:
        sent = self._sent.pop(slot, None)
        if sent is not None:  # the listener has read it: it is as good as done
            _wait(sent, timeout)
        self._sent[slot] = self._ready().send(self._device.part(self._memory[slot], nbytes))

    def receive(self, slot: int, nbytes: int, timeout: float) -> tuple[Buffer, int]:
        memory = self._device.part(self._memory[slot], nbytes)
        _wait(self._ready().receive(memory, self._read.pop(slot, None)), timeout)
        return memory, self._device.checksum(memory)

    def read(self, slot: int) -> None:
        self._read[slot] = self._device.mark()

    def abort(self) -> None:
        self._aborted = True
        communicator, self._communicator = self._communicator, None
        if communicator is not None:
            communicator.abort()

    def _ready(self) -> Communicator:
        if self._communicator is None:
            raise TransferFailed("the NCCL communicator is gone")
        return self._communicator


def nccl_transport(device: Device, control: TcpTransport, timeout: float) -> PairedTransport:
    """`timeout` in seconds bounds meeting, and a frame."""
    return PairedTransport(control, partial(NcclRoad, device), timeout)


def _wait(event: Event, timeout: float) -> None:
    """Raises TransferFailed when it takes longer than `timeout` seconds."""
    deadline = time.monotonic() + timeout
    pause, longest = POLL
    while not event.done():
        if time.monotonic() >= deadline:
            raise TransferFailed(f"NCCL has moved nothing for {timeout:g} s: the peer hangs, or is gone")
        time.sleep(pause)
        pause = min(2 * pause, longest)
