"""NCCL for real: two processes on two GPUs, or on one from NCCL 2.30 on. Skipped where there is neither."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import zlib
from pathlib import Path
from typing import Any

import pytest

from migration.nccl import nccl_transport
from migration.nccl_device import NcclDevice, obstacle
from migration.tcp import TcpTransport

ROOT = Path(__file__).resolve().parents[2]
TIMEOUT = 60.0

pytestmark = pytest.mark.skipif(obstacle() is not None, reason=f"no NCCL here: {obstacle()}")

# NCCL refuses two ranks on one GPU unless told otherwise, from 2.30 on. Before, two processes that claimed to
# be two hosts were tried on an H200 with 2.28.9: they did not get through in a minute.
SHARED = {"NCCL_MULTI_RANK_GPU_ENABLE": "1", "NCCL_SOCKET_IFNAME": "lo", "NCCL_IB_DISABLE": "1"}


def gpus() -> int:
    """Skips where one GPU would have to serve two processes that NCCL cannot tell apart."""
    import cupy
    from cupy.cuda import nccl

    count = int(cupy.cuda.runtime.getDeviceCount())
    if count < 2 and nccl.get_version() < 23000:
        pytest.skip("two processes of NCCL before 2.30 need two GPUs")
    return count


def put(data: bytes) -> Any:
    import numpy

    def fill(memory: Any) -> None:
        memory.set(numpy.frombuffer(data, numpy.uint8))

    return fill


def test_payloads_reach_another_process_whole_and_in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    other = min(gpus() - 1, 1)
    for name, value in SHARED.items():
        monkeypatch.setenv(name, value)
    command = [sys.executable, "-m", "tests.migration.paired_peer", "gpu", str(other)]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    bound = threading.Timer(TIMEOUT, process.kill)
    bound.start()
    try:
        address = next(line for line in process.stdout if line.startswith("127.0.0.1:")).strip()
        near = nccl_transport(NcclDevice(), TcpTransport(TIMEOUT), TIMEOUT).connect(address, TIMEOUT)
        try:
            near.trust()
            sent = [os.urandom(size) for size in (1, 4095, 1 << 20, (1 << 20) + 1, 16 << 20, 7)]
            for number, data in enumerate(sent):
                near.send(b"%d" % number, len(data), put(data))
            said = [frame.header for _ in sent if (frame := near.receive(TIMEOUT)) is not None]
            assert said == [b"%d %d" % (number, zlib.crc32(data)) for number, data in enumerate(sent)]
            near.tamper = lambda memory: memory.__setitem__(3, memory[3] ^ 1)
            near.send(b"bad", 8, put(b"12345678"))
            frame = near.receive(TIMEOUT)
            assert frame is not None
            assert frame.header == b"bad damaged"
            near.send(b"end")
            assert process.wait(TIMEOUT) == 0
        finally:
            near.close()
    finally:
        bound.cancel()
        process.kill()
        process.wait(TIMEOUT)
        process.stdout.close()


def test_the_checksum_depends_on_every_byte_and_its_place() -> None:
    import numpy

    device = NcclDevice()
    data = numpy.random.default_rng(1).integers(0, 256, 4096, dtype=numpy.uint8)
    memory: Any = device.memory(4096)
    memory.set(data)
    known = device.checksum(memory)
    for place in (0, 1, 2047, 4095):
        changed = data.copy()
        changed[place] ^= 1
        memory.set(changed)
        assert device.checksum(memory) != known
    swapped = data.copy()
    swapped[[3, 1000]] = swapped[[1000, 3]]
    memory.set(swapped)
    assert (device.checksum(memory) == known) == (data[3] == data[1000])
