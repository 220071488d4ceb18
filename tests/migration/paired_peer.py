"""A process that takes transfers: says its address, then the checksum of every payload that comes.

python -m tests.migration.paired_peer double|nixl|gpu [NUMBER]
"""

from __future__ import annotations

import sys
import zlib

from engine.errors import TransferFailed
from migration.nccl import nccl_transport
from migration.nccl_device import NcclDevice
from migration.nixl import nixl_transport
from migration.paired import PairedTransport
from migration.tcp import TcpTransport
from tests.migration.nccl_double import DoubleDevice


def transport(kind: str, timeout: float, number: int) -> PairedTransport:
    control = TcpTransport(timeout)
    if kind == "nixl":
        return nixl_transport(control, timeout)
    return nccl_transport(NcclDevice(number) if kind == "gpu" else DoubleDevice(), control, timeout)


def host_bytes(payload: object) -> bytes:
    return bytes(payload) if isinstance(payload, memoryview) else payload.get().tobytes()  # type: ignore[attr-defined]


def main(kind: str, number: str = "0", timeout: float = 30.0) -> None:
    listener = transport(kind, timeout, int(number)).listen("127.0.0.1:0")
    sys.stdout.write(f"{listener.address}\n")
    sys.stdout.flush()
    channel = listener.accept()
    channel.trust()
    try:
        while (frame := channel.receive(timeout)) is not None:
            if frame.header == b"end":
                break
            what = "damaged" if frame.payload is None else str(zlib.crc32(host_bytes(frame.payload)))
            frame.release()
            channel.send(b"%s %s" % (frame.header, what.encode()))
    except TransferFailed as error:
        sys.stderr.write(f"{error.message}\n")
    channel.close()
    listener.close()


if __name__ == "__main__":
    main(*sys.argv[1:])
