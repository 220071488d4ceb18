"""The KV blocks of an instance and who counts on them: allocate, share, copy-on-write, free.

After PagedAttention (arXiv 2309.06180): logical to physical blocks, a reference count per block, and
copy-on-write at the grain of a block. A block is always in one of four states:

    free ──reserve──▶ reserved ──settle──▶ used ◀──share── cached
     │ │                 │                 ▲ │ │             ▲ │
     │ └─────────────────┼────allocate─────┘ │ └─last reader─┘ └─evicted (LRU) for an allocation
     │                   ▼                   ▼     gone, known by its prefix
     └──────────────── last reader gone, not known

Ledger: free + used + cached + reserved == total.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from engine.errors import Overloaded
from engine.prefix_cache import PrefixCache


class BlockPool:
    """Accounts for `total` blocks of `block_size` token slots; the tensors are elsewhere.

    Block ids are 0 … total - 1 and are used again. Every operation is O(1) per block it names.
    """

    def __init__(self, total: int, block_size: int, prefix_cache: bool = True) -> None:
        self.total = total
        self.block_size = block_size
        self.caching = prefix_cache
        self._cache = PrefixCache()
        self._refs = [0] * total
        self._free = list(range(total - 1, -1, -1))
        self._reserved: set[int] = set()

    @property
    def free(self) -> int:
        return len(self._free)

    @property
    def cached(self) -> int:
        """Blocks without a reader that are kept for their content."""
        return len(self._cache)

    @property
    def reserved(self) -> int:
        return len(self._reserved)

    @property
    def used(self) -> int:
        return self.total - self.free - self.cached - self.reserved

    @property
    def available(self) -> int:
        """Blocks that can be had now: the free ones and those that can be evicted."""
        return len(self._free) + len(self._cache)

    def blocks_for(self, tokens: int) -> int:
        return -(-tokens // self.block_size)

    def refs(self, block: int) -> int:
        return self._refs[block]

    def allocate(self, count: int) -> list[int]:
        """`count` blocks with one reference each. Raises Overloaded if there are not so many."""
        if count > self.available:
            raise Overloaded(
                f"{count} KV blocks asked for, {self.available} of {self.total} available: "
                "try again later or raise engine.kv_memory",
                param="engine.kv_memory",
            )
        blocks = self._free[: -count - 1 : -1]
        del self._free[len(self._free) - len(blocks) :]
        blocks += self._cache.evict(count - len(blocks))
        for block in blocks:
            self._refs[block] = 1
        return blocks

    def reserve(self, count: int) -> list[int]:
        """Like `allocate`, for KV that is still on its way here."""
        blocks = self.allocate(count)
        self._reserved.update(blocks)
        return blocks

    def settle(self, blocks: Iterable[int]) -> None:
        """What was reserved is now used; other blocks stay what they are."""
        self._reserved.difference_update(blocks)

    def share(self, blocks: Iterable[int]) -> None:
        """One more reference to each."""
        for block in blocks:
            if self._refs[block] == 0:
                self._cache.revive(block)
            self._refs[block] += 1

    def release(self, blocks: Sequence[int]) -> None:
        """One reference less to each, the last first: the end of a prefix is evicted before its start."""
        refs, unread = self._refs, []
        for block in reversed(blocks):
            assert refs[block] > 0, f"block {block} freed twice"
            refs[block] -= 1
            if refs[block] == 0:
                unread.append(block)
        self._reserved.difference_update(unread)
        self._free += self._cache.retire(unread)

    def find(self, keys: Iterable[bytes], limit: int) -> list[int]:
        """Cached blocks of the longest prefix of `keys`, at most `limit`; they are not yet shared."""
        return self._cache.find(keys, limit)

    def idle(self, blocks: Iterable[int]) -> int:
        """How many of `blocks` have no reader: sharing them makes so many fewer available."""
        return sum(self._refs[block] == 0 for block in blocks)

    def register(self, blocks: Iterable[int], keys: Iterable[bytes]) -> None:
        """Each of `blocks` is full and holds the prefix that its key stands for. Only where `caching`."""
        self._cache.insert(keys, blocks)

    def check(self) -> None:
        """The ledger, counted block by block. Raises AssertionError when a block is lost or counted twice."""
        free = set(self._free)
        assert len(free) == len(self._free), "a block is free twice"
        assert all(self._refs[block] == 0 and block not in self._cache for block in free)
        assert all(self._refs[block] > 0 for block in self._reserved), "a reserved block is free"
        self._cache.check(self._refs)
        held = sum(count > 0 for count in self._refs)
        assert held == self.used + self.reserved, "a block is lost"
