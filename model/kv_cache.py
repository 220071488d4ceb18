"""The KV cache of an instance: one tensor of blocks, and moving blocks in and out of it as bytes.

    pool [layers, 2, blocks, block_size, kv_heads, head_dim]      2: keys, values
      └ pool[layer, 0], pool[layer, 1]: the contiguous views that kernels get
    bytes of a block: [layers, 2, block_size, kv_heads, head_dim], in C order, blocks one after another

A block is contiguous on the way, so that a receiver may take any run of blocks out of a message.
"""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from engine.errors import SetupError
from kernels.dispatch import Kernels
from model.memory import available_memory, small_pages, take_pages

DTYPES = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
    "float64": torch.float64,
    "float8_e4m3fn": torch.float8_e4m3fn,
    "float8_e5m2": torch.float8_e5m2,
}


class DeviceMemory(Protocol):
    """Bytes in the memory of the cache's GPU."""

    @property
    def nbytes(self) -> int: ...
    @property
    def __cuda_array_interface__(self) -> dict[str, Any]: ...


Buffer = memoryview | DeviceMemory


@dataclass(frozen=True, slots=True)
class KVLayout:
    """What a block looks like. Two instances exchange KV if all but the block size is equal. `dtype` is a
    name such as "float32"."""

    layers: int
    block_size: int
    kv_heads: int
    head_dim: int
    dtype: str

    @property
    def block_shape(self) -> tuple[int, int, int, int, int]:
        return (self.layers, 2, self.block_size, self.kv_heads, self.head_dim)

    @property
    def block_nbytes(self) -> int:
        return 2 * self.layers * self.block_size * self.kv_heads * self.head_dim * DTYPES[self.dtype].itemsize


class KVCache:
    """`blocks` blocks of a layout on one device, numbered from 0. Who owns which is the engine's to know."""

    def __init__(self, layout: KVLayout, blocks: int, device: torch.device, kernels: Kernels) -> None:
        """Raises SetupError if the pool does not fit into the memory that is free now."""
        self.layout = layout
        self.blocks = blocks
        self._device = device
        self._kernels = kernels
        self._dtype = DTYPES[layout.dtype]
        self.pool = _allocate(layout, blocks, device)

    @property
    def block_nbytes(self) -> int:
        return self.layout.block_nbytes

    def layer(self, index: int) -> tuple[Tensor, Tensor]:
        """Keys and values of a layer, each [blocks, block_size, kv_heads, head_dim], sharing the pool."""
        return self.pool[index, 0], self.pool[index, 1]

    def populate(self, ended: threading.Event) -> None:
        """Take the memory of every block before it is used, until `ended` is set; for a thread of its own."""
        if self._device.type == "cpu":
            take_pages(self.pool.data_ptr(), self.pool.nbytes, ended)

    def gather(self, blocks: Sequence[int], out: Buffer) -> None:
        """Copy blocks into `out`, a writable buffer of len(blocks) · block_nbytes bytes, or on the device.

        Raises ValueError for a buffer of another size, IndexError for a block outside the pool.
        """
        index = self._index(blocks, out.nbytes)
        if not blocks:
            return
        target = self._view(out, (len(blocks), *self.layout.block_shape))
        with torch.inference_mode():
            if target.device == self.pool.device:
                self._kernels.gather_blocks(self.pool, index, target)
                return
            staged = torch.empty(target.shape, dtype=target.dtype, device=self._device)
            self._kernels.gather_blocks(self.pool, index, staged)
            target.copy_(staged)

    def gather_slots(self, slots: Sequence[int], size: int, out: Buffer) -> None:
        """Copy slots, each block · block_size + place, into `out` as blocks of `size` slots: what a cache of
        that block size takes with `scatter`.

        Raises ValueError for another size of buffer or slots that fill no whole blocks, IndexError for a
        slot outside the pool.
        """
        layers, two, here, heads, dim = self.layout.block_shape
        nbytes = len(slots) * self.block_nbytes // here
        if len(slots) % size or out.nbytes != nbytes:
            raise ValueError(f"{len(slots)} slots in blocks of {size} take {nbytes} bytes, not {out.nbytes}")
        if slots and (min(slots) < 0 or max(slots) >= self.blocks * here):
            raise IndexError(f"slots {min(slots)} to {max(slots)} are not all in {self.blocks} blocks")
        if not slots:
            return
        with torch.inference_mode():
            index = torch.tensor(slots, dtype=torch.int64).to(self._device)
            flat = self.pool.view(layers, two, self.blocks * here, heads, dim).index_select(2, index)
            cut = flat.view(layers, two, len(slots) // size, size, heads, dim).permute(2, 0, 1, 3, 4, 5)
            self._view(out, cut.shape).copy_(cut)

    def scatter(self, blocks: Sequence[int], data: Buffer) -> None:
        """Write into distinct `blocks` what `gather` put into `data`. Raises as `gather`."""
        index = self._index(blocks, data.nbytes)
        if not blocks:
            return
        if len(set(blocks)) < len(blocks):
            raise ValueError("a block is written twice")
        with torch.inference_mode():
            source = self._view(data, (len(blocks), *self.layout.block_shape)).to(self._device)
            self._kernels.scatter_blocks(self.pool, index, source)

    def copy(self, pairs: Sequence[tuple[int, int]]) -> None:
        """Copy blocks within the pool, (source, target) each, with the effect of one after another."""
        for run in _independent(pairs):
            sources, targets = zip(*run, strict=True)
            with torch.inference_mode():
                self._kernels.copy_blocks(self.pool, self._index(sources), self._index(targets))

    def _index(self, blocks: Sequence[int], nbytes: int | None = None) -> Tensor:
        if nbytes is not None and nbytes != len(blocks) * self.block_nbytes:
            wanted = len(blocks) * self.block_nbytes
            raise ValueError(f"{len(blocks)} blocks take {wanted} bytes, not {nbytes}")
        if blocks and (min(blocks) < 0 or max(blocks) >= self.blocks):
            raise IndexError(f"blocks {min(blocks)} to {max(blocks)} are not all in a pool of {self.blocks}")
        return torch.tensor(blocks, dtype=torch.int64).to(self._device)

    def _view(self, data: Buffer, shape: Sequence[int]) -> Tensor:
        if not isinstance(data, memoryview):
            return torch.as_tensor(data, device=self._device).view(self._dtype).view(*shape)
        # torch warns of read-only buffers, such as received bytes; by address it takes them, and
        # `scatter` only reads. The caller's `data` keeps the memory alive.
        address = np.frombuffer(data, dtype=np.uint8).ctypes.data
        flat = torch.frombuffer((ctypes.c_char * data.nbytes).from_address(address), dtype=self._dtype)
        return flat.view(*shape)


def _independent(pairs: Sequence[tuple[int, int]]) -> Iterator[list[tuple[int, int]]]:
    """Runs of copies whose sources can all be read before any target is written."""
    run: list[tuple[int, int]] = []
    written: set[int] = set()
    for source, target in pairs:
        if source in written or target in written:
            yield run
            run, written = [], set()
        run.append((source, target))
        written.add(target)
    if run:
        yield run


def _allocate(layout: KVLayout, blocks: int, device: torch.device) -> Tensor:
    """Zeroed; on the CPU untouched pages cost no memory until a block is used."""
    layers, two, *block = layout.block_shape
    shape = (layers, two, blocks, *block)
    if device.type != "cpu":
        try:
            return torch.zeros(shape, dtype=DTYPES[layout.dtype], device=device)
        except torch.OutOfMemoryError as error:
            raise _too_large(layout, blocks, "the memory of " + str(device)) from error
    free = available_memory()
    if blocks * layout.block_nbytes > free:
        raise _too_large(layout, blocks, f"the {free / 2**20:.0f} MiB of memory that are free")
    raw = np.frombuffer(small_pages(blocks * layout.block_nbytes), dtype=np.uint8)
    return torch.from_numpy(raw).view(DTYPES[layout.dtype]).view(shape)


def _too_large(layout: KVLayout, blocks: int, where: str) -> SetupError:
    size = f"{blocks * layout.block_nbytes / 2**20:.0f} MiB ({blocks} blocks)"
    return SetupError(f"a KV cache of {size} does not fit into {where}: make it smaller")
