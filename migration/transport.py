"""How bytes get from one instance to another: the ports, and which transports suit two ends.

A channel carries frames: a small header and a payload of blocks. What the header says is the caller's
business; framing, length checks and checksums are the channel's.
"""

from __future__ import annotations

import os
import platform
import socket
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from engine.errors import TransferFailed

MAX_HEADER = 1 << 24
"""Bytes of a frame's header once the peer is known: a state with a prompt of millions of tokens."""

MAX_HELLO = 1 << 14
"""Bytes of a frame's header before that."""

MAX_PAYLOAD = 1 << 26
"""Bytes of a frame's payload: what a receiver is ready to hold in memory for one frame."""


class DeviceMemory(Protocol):
    """Bytes in the memory of a GPU, as cupy and torch pass them on."""

    @property
    def nbytes(self) -> int: ...
    @property
    def __cuda_array_interface__(self) -> dict[str, Any]: ...


Buffer = memoryview | DeviceMemory

Fill = Callable[[Any], None]
"""Writes a payload into the `Buffer` that it is given, whose size is that of the payload."""


@dataclass(frozen=True, slots=True)
class Address:
    """Where an instance receives. `host` is its `host_id()`; a transport is "" where it is not offered."""

    instance: str
    host: str
    shm: str
    tcp: str
    nccl: str = ""
    nixl: str = ""


class Layout(Protocol):
    """What a block of KV looks like, in the words of whoever computes it. `dtype` is a name."""

    @property
    def layers(self) -> int: ...
    @property
    def block_size(self) -> int: ...
    @property
    def kv_heads(self) -> int: ...
    @property
    def head_dim(self) -> int: ...
    @property
    def dtype(self) -> str: ...


class BlockStore(Protocol):
    """The KV of an instance, as far as movements see it."""

    @property
    def block_nbytes(self) -> int: ...
    @property
    def layout(self) -> Layout: ...

    def gather(self, blocks: Sequence[int], out: Buffer) -> None:
        """Copy blocks into `out`, len(blocks) · block_nbytes bytes."""

    def gather_slots(self, slots: Sequence[int], size: int, out: Buffer) -> None:
        """Copy slots, each block · block_size + place, as if every `size` of them were a block."""

    def scatter(self, blocks: Sequence[int], data: Buffer) -> None:
        """Write into blocks what `gather` put into `data`."""


class Frame(Protocol):
    """What came. `payload` is None if its checksum was wrong, and may be read until `release`."""

    @property
    def header(self) -> bytes: ...
    @property
    def payload(self) -> Buffer | None: ...

    def release(self) -> None: ...


class Channel(Protocol):
    """One connection, for one thread. Every method raises TransferFailed once it is broken.

    `tamper` is done to each payload after its checksum was taken: how a damaged link is made.
    """

    tamper: Fill | None

    def send(self, header: bytes, nbytes: int = 0, fill: Fill | None = None) -> None:
        """Send a frame with a payload of `nbytes` bytes; bounded by the chunk timeout."""

    def receive(self, timeout: float) -> Frame | None:
        """The next frame, None if none begins within `timeout` seconds."""

    def fileno(self) -> int:
        """Readable when there is something to receive, unless `pending`."""

    @property
    def pending(self) -> bool:
        """Whether a frame has been read already and waits for `receive`."""

    def trust(self) -> None:
        """The peer has proved who it is: take frames of full size from it."""

    def close(self) -> None: ...


class Listener(Protocol):
    """Takes connections in."""

    @property
    def address(self) -> str: ...

    def fileno(self) -> int: ...

    def accept(self) -> Channel:
        """The connection that made `fileno` readable."""

    def close(self) -> None: ...


class Transport(Protocol):
    """A way of carrying frames."""

    def listen(self, address: str) -> Listener:
        """Raises TransferFailed if the address cannot be had."""

    def connect(self, address: str, timeout: float) -> Channel:
        """Raises TransferFailed if nobody answers within `timeout` seconds."""


def describe(layout: Layout) -> str:
    """A layout in words that are equal when the bytes of a block mean the same."""
    return (
        f"{layout.layers} layers, blocks of {layout.block_size} tokens, {layout.kv_heads} KV heads of "
        f"{layout.head_dim}, {layout.dtype}"
    )


def host_id() -> str:
    """Equal where abstract unix sockets are shared: one boot of one machine, one network namespace."""
    try:
        with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
            boot = file.read().strip()
        return f"{boot}/{os.stat('/proc/self/ns/net').st_ino}"
    except OSError:
        return f"{platform.node()}/{socket.gethostname()}"


def choose(address: Address, mine: str, forced: str, here: Collection[str]) -> tuple[tuple[str, str], ...]:
    """Transports and their addresses for reaching `address` from the host `mine` (a `host_id()`), best first.

    `forced` is shm or tcp where only that is to be taken; `here` are the names of those that this end has.
    Raises TransferFailed if the two ends have no way in common.
    """
    near = address.host == mine
    offered = {
        "nccl": address.nccl,
        "nixl": address.nixl,
        "shm": address.shm if near else "",
        "tcp": address.tcp,
    }
    wanted = {forced} & {*here} if forced in ("shm", "tcp") else here
    ways = tuple((name, where) for name, where in offered.items() if where and name in wanted)
    if not ways:
        kind = f"transport {forced}" if forced in ("shm", "tcp") else "transports"
        where = "" if near else ", which is not on this host"
        raise TransferFailed(
            f"no {kind} in common with {address.instance}{where}: set transfer.transport to auto at both ends"
        )
    return ways
