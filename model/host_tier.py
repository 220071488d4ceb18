"""Blocks of KV in host memory: the second tier of an instance's cache, for sequences that wait."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch

from engine.errors import SetupError
from model.kv_cache import KVCache
from model.memory import available_memory

Pairs = Sequence[tuple[int, int]]


class HostTier:
    """`slots` blocks beside a KV cache, numbered from 0. Who owns which is the engine's to know."""

    def __init__(self, kv: KVCache, slots: int) -> None:
        """Raises SetupError if they do not fit into the memory that is free now, beside a cache on the CPU
        of which no block is written yet."""
        pinned = kv.pool.device.type == "cuda"
        nbytes = slots * kv.block_nbytes
        free = available_memory() - (0 if pinned else kv.blocks * kv.block_nbytes)
        if slots and nbytes > free:
            raise SetupError(
                f"{nbytes / 2**20:.0f} MiB of host memory for swapped KV do not fit into the "
                f"{max(0, free) / 2**20:.0f} MiB that the KV cache leaves free: make it or the cache smaller"
            )
        self.slots = slots
        self._kv = kv
        self._tensor = torch.empty(nbytes, dtype=torch.uint8, pin_memory=pinned)
        self._memory = self._tensor.numpy().data.cast("B")

    def swap_out(self, pairs: Pairs) -> None:
        """Copy (block, slot) each, from the cache to here."""
        for blocks, first in _runs(pairs):
            self._kv.gather(blocks, self._part(first, len(blocks)))

    def swap_in(self, pairs: Pairs) -> None:
        """Copy (slot, block) each, from here into the cache."""
        for blocks, first in _runs([(block, slot) for slot, block in pairs]):
            self._kv.scatter(blocks, self._part(first, len(blocks)))

    def _part(self, first: int, count: int) -> memoryview:
        size = self._kv.block_nbytes
        return self._memory[first * size : (first + count) * size]


def _runs(pairs: Pairs) -> Iterator[tuple[list[int], int]]:
    """Blocks whose slots lie side by side, with the first of the slots: each run is one copy."""
    blocks: list[int] = []
    first = 0
    for block, slot in sorted(pairs, key=lambda pair: pair[1]):
        if blocks and slot != first + len(blocks):
            yield blocks, first
            blocks = []
        if not blocks:
            first = slot
        blocks.append(block)
    if blocks:
        yield blocks, first
