"""The KV of an instance whose heads are split over ranks, as one cache with all of them.

    ranks           [layers, 2, block_size, heads 0 … a, dim] │ [… heads a … b, dim] │ …
    a block here    [layers, 2, block_size, all heads, dim]

Blocks travel with all heads in order, so that two ends need not split them alike: each puts together and
takes apart what its own ranks hold.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from model.kv_cache import KVCache, KVLayout

Bytes = NDArray[np.uint8]


class RankedKV:
    """`ranks` hold the same blocks, each some of the heads, in the order of the heads."""

    def __init__(self, ranks: Sequence[KVCache]) -> None:
        """Raises ValueError if the ranks' blocks differ in anything but the number of heads."""
        first = ranks[0]
        alike = {(replace(one.layout, kv_heads=0), one.blocks) for one in ranks}
        if len(alike) > 1:
            raise ValueError(f"ranks of one instance hold different blocks: {sorted(map(str, alike))}")
        self._ranks = ranks
        self.blocks = first.blocks
        self.layout: KVLayout = replace(first.layout, kv_heads=sum(one.layout.kv_heads for one in ranks))

    @property
    def block_nbytes(self) -> int:
        return self.layout.block_nbytes

    def gather(self, blocks: Sequence[int], out: memoryview) -> None:
        """See `KVCache.gather`."""
        self._join(len(blocks), self.layout.block_size, out, lambda rank, part: rank.gather(blocks, part))

    def gather_slots(self, slots: Sequence[int], size: int, out: memoryview) -> None:
        """See `KVCache.gather_slots`."""
        count = len(slots) // size
        self._join(count, size, out, lambda rank, part: rank.gather_slots(slots, size, part))

    def scatter(self, blocks: Sequence[int], data: memoryview) -> None:
        """See `KVCache.scatter`."""
        if not blocks:
            return
        whole = self._heads(np.frombuffer(data, np.uint8), len(blocks), self.layout.block_size)
        first = 0
        for rank in self._ranks:
            last = first + rank.layout.kv_heads
            rank.scatter(blocks, np.ascontiguousarray(whole[:, :, first:last]).reshape(-1).data)
            first = last

    def _join(
        self, count: int, size: int, out: memoryview, fill: Callable[[KVCache, memoryview], None]
    ) -> None:
        if not count:
            return
        whole = self._heads(np.frombuffer(out, np.uint8), count, size)
        first = 0
        for rank in self._ranks:
            last = first + rank.layout.kv_heads
            part = np.empty(rank.block_nbytes // rank.layout.block_size * size * count, np.uint8)
            fill(rank, part.data)
            whole[:, :, first:last] = part.reshape(-1, size, last - first, whole.shape[3])
            first = last

    def _heads(self, data: Bytes, count: int, size: int) -> Bytes:
        """[blocks · layers · 2, size, heads, bytes of a head]. Raises ValueError for other sizes."""
        layers, two, here, heads, _ = self.layout.block_shape
        head = self.block_nbytes // (layers * two * here * heads)
        return data.reshape(count * layers * two, size, heads, head)
