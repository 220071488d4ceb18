"""One GPU for NCCL transfers: cupy's communicator, three streams beside the one on which the model computes.

    gather   what fills memory of ours (torch runs there too), and checksums
    send     ncclSend        receive   ncclRecv

cupy imports without a GPU and without NCCL: what is missing is found out by looking, once, at the start.
"""

from __future__ import annotations

import zlib
from typing import Any

from engine.errors import SetupError, TransferFailed
from migration.nccl import Communicator, Event
from migration.transport import MAX_PAYLOAD, Buffer, Fill

ID_BYTES = 128
"""Of an ncclUniqueId, which cupy 14.2 gives and takes as bytes, and releases before it as signed chars."""

WORD = 4
"""Bytes that are added up at once."""

ADVICE = (
    "pip install 'tandem-serving[gpu]' on a machine with an NVIDIA GPU, or set transfer.transport to auto"
)


def obstacle() -> str | None:
    """Why NCCL does not serve here, None if it does."""
    try:
        import cupy
        from cupy.cuda import nccl
    except ImportError as error:
        return f"cupy is not installed ({error})"
    try:
        if not cupy.cuda.runtime.getDeviceCount():
            return "there is no GPU"
    except Exception as error:
        return f"there is no GPU ({error})"
    if not hasattr(nccl, "NcclCommunicator"):
        return "cupy has no NCCL: install the nvidia-nccl wheel of its CUDA version"
    return None


class NcclDevice:
    """See `nccl.Device`. `index` is CUDA's number of the GPU, that of the KV cache."""

    def __init__(self, index: int = 0) -> None:
        """Raises SetupError where there is no GPU, no cupy or no NCCL."""
        missing = obstacle()
        if missing is not None:
            raise SetupError(f"transfer.transport nccl: {missing}; {ADVICE}", param="transfer.transport")
        import cupy
        from cupy.cuda import nccl

        self._cupy: Any = cupy
        self._nccl: Any = nccl
        self._device = cupy.cuda.Device(index)
        with self._device:
            self._gather = cupy.cuda.Stream(non_blocking=True)
            # Odd: no change of a single word goes unnoticed. Different: words that change places are noticed.
            self._weights = cupy.arange(MAX_PAYLOAD // WORD, dtype=cupy.uint32) * 2 + 1
            self._device.synchronize()

    def unique_id(self) -> bytes:
        return bytes(char & 0xFF for char in self._nccl.get_unique_id())

    def join(self, unique_id: bytes, rank: int) -> Communicator:
        if len(unique_id) != ID_BYTES:
            raise TransferFailed(f"an NCCL id of {len(unique_id)} bytes, {ID_BYTES} make one")
        try:
            with self._device:
                stream = self._cupy.cuda.Stream(non_blocking=True)
                return NcclPair(self, self._pair(unique_id, rank), 1 - rank, stream)
        except (self._nccl.NcclError, RuntimeError) as error:
            raise TransferFailed(f"no NCCL communicator: {error}") from error

    def _pair(self, unique_id: bytes, rank: int) -> Any:
        try:
            return self._nccl.NcclCommunicator(2, unique_id, rank)
        except TypeError:
            return self._nccl.NcclCommunicator(2, tuple(memoryview(unique_id).cast("b")), rank)

    def memory(self, nbytes: int) -> Buffer:
        try:
            with self._device:
                return self._cupy.empty(nbytes, dtype=self._cupy.uint8)  # type: ignore[no-any-return]
        except self._cupy.cuda.memory.OutOfMemoryError as error:
            raise TransferFailed(f"no GPU memory for transfers: {error}; lower engine.kv_memory") from error

    def part(self, memory: Any, nbytes: int) -> Buffer:
        return memory[:nbytes]  # type: ignore[no-any-return]

    def fill(self, memory: Buffer, fill: Fill) -> None:
        import torch

        outer = torch.cuda.ExternalStream(self._gather.ptr, device=self._device.id)  # type: ignore[no-untyped-call]
        with self._device, self._gather, torch.cuda.stream(outer):
            fill(memory)
        self._gather.synchronize()

    def checksum(self, memory: Any) -> int:
        """The weighted sum of all words, and a CRC of the bytes behind the last whole one."""
        count = memory.nbytes // WORD
        with self._device, self._gather:
            words = memory[: count * WORD].view(self._cupy.uint32)
            total = int((words * self._weights[:count]).sum(dtype=self._cupy.uint64))
            rest = memory[count * WORD :].get().tobytes()
        return (total ^ zlib.crc32(rest)) & 0xFFFFFFFF

    def mark(self) -> Event:
        """After what the thread's present torch stream was told: that is where scatter runs."""
        import torch

        with self._device:
            event = self._cupy.cuda.Event(disable_timing=True)
            event.record(
                self._cupy.cuda.ExternalStream(torch.cuda.current_stream(self._device.id).cuda_stream)
            )
            return NcclEvent(event, lambda: None)

    def record(self, stream: Any, check: Any) -> NcclEvent:
        """A point in one of our streams; `check` raises what became known of failures meanwhile."""
        event = self._cupy.cuda.Event(disable_timing=True)
        event.record(stream)
        return NcclEvent(event, check)


class NcclEvent:
    """See `nccl.Event`."""

    def __init__(self, event: Any, check: Any) -> None:
        self.event = event
        self._check = check

    def done(self) -> bool:
        self._check()
        return bool(self.event.done)


class NcclPair:
    """See `nccl.Communicator`."""

    def __init__(self, device: NcclDevice, communicator: Any, peer: int, stream: Any) -> None:
        self._device = device
        self._communicator = communicator
        self._peer = peer
        self._stream = stream

    def send(self, memory: Any) -> Event:
        return self._post("send", memory)

    def receive(self, memory: Any, after: Event | None) -> Event:
        if isinstance(after, NcclEvent):
            self._stream.wait_event(after.event)
        return self._post("recv", memory)

    def abort(self) -> None:
        self._communicator.abort()

    def _post(self, what: str, memory: Any) -> Event:
        device = self._device
        kind = device._nccl.NCCL_UINT8
        try:
            with device._device:
                move = getattr(self._communicator, what)
                move(memory.data.ptr, memory.nbytes, kind, self._peer, self._stream.ptr)
                return device.record(self._stream, self._check)
        except (device._nccl.NcclError, RuntimeError) as error:
            raise TransferFailed(f"NCCL cannot {what}: {error}") from error

    def _check(self) -> None:
        try:
            self._communicator.check_async_error()
        except self._device._nccl.NcclError as error:
            raise TransferFailed(f"NCCL failed: {error}") from error
