"""Which full blocks hold which token prefixes, and which of them to forget first.

The key of a full block is SHA-256 over the key of the block before it and its own tokens; the first
is chained to a root that names everything else the KV depends on. So one key stands for a whole
prefix, and it is the same in every process of every instance.
"""

from __future__ import annotations

import hashlib
import struct
import sys
from array import array
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from functools import lru_cache
from itertools import islice


def fingerprint(*fields: str | bytes) -> bytes:
    """32 bytes over the fields, each with its length before it so that none runs into the next.

    The model's fingerprint is over (weights digest, numerics, KV format).
    """
    digest = hashlib.sha256()
    for field in fields:
        data = field.encode() if isinstance(field, str) else field
        digest.update(struct.pack("<Q", len(data)))
        digest.update(data)
    return digest.digest()


@lru_cache(maxsize=256)
def root(model: bytes, adapter: str, salt: str) -> bytes:
    """What the first block of a request is chained to: its model, its adapter, its tenant's salt."""
    return fingerprint(model, adapter, salt)


def extend(keys: list[bytes], start: bytes, tokens: Sequence[int], block_size: int) -> None:
    """Append the keys of the full blocks in `tokens`, which follow those that `keys` covers."""
    data = array("I", tokens)
    if sys.byteorder == "big":
        data.byteswap()
    raw = memoryview(data).cast("B")
    parent, size, sha256 = keys[-1] if keys else start, data.itemsize * block_size, hashlib.sha256
    for first in range(0, len(raw) - size + 1, size):
        parent = sha256(parent + raw[first : first + size]).digest()
        keys.append(parent)


@lru_cache(maxsize=16)
def of_prompt(start: bytes, prompt: tuple[int, ...], block_size: int) -> tuple[bytes, ...]:
    """The keys of a whole prompt, which are asked for when it is let in or reserved for, and again when it
    is taken over."""
    keys: list[bytes] = []
    extend(keys, start, prompt, block_size)
    return tuple(keys)


class PrefixCache:
    """Key to block and back, with the unreferenced blocks in the order in which they may go.

    Holds no reference counts: the pool says when a block loses its last reader (`retire`) and when
    it gains one again (`revive`). All operations are O(1) per block.
    """

    def __init__(self) -> None:
        self._block: dict[bytes, int] = {}
        self._key: dict[int, bytes] = {}
        self._idle: OrderedDict[int, None] = OrderedDict()

    def __len__(self) -> int:
        """Blocks that are cached and that nobody reads: they may be evicted."""
        return len(self._idle)

    def __contains__(self, block: int) -> bool:
        return block in self._key

    def find(self, keys: Iterable[bytes], limit: int) -> list[int]:
        """The blocks of the longest known prefix of `keys`, at most `limit` of them."""
        found: list[int] = []
        for key in keys:
            if len(found) >= limit:
                break
            block = self._block.get(key)
            if block is None:
                break
            found.append(block)
        return found

    def insert(self, keys: Iterable[bytes], blocks: Iterable[int]) -> None:
        """Each of `blocks`, which are being read, holds the prefix of its key. The first block of a key
        stays it."""
        block_of, key_of = self._block, self._key
        for key, block in zip(keys, blocks, strict=False):
            if key not in block_of and block not in key_of:
                block_of[key] = block
                key_of[block] = key

    def retire(self, blocks: Sequence[int]) -> list[int]:
        """Nobody reads `blocks` any more. Those that stay cached are the last to be evicted, in this order;
        the others are given back."""
        key_of, idle, unknown = self._key, self._idle, []
        for block in blocks:
            if block in key_of:
                idle[block] = None
            else:
                unknown.append(block)
        return unknown

    def revive(self, block: int) -> None:
        """`block` is read again: it may not be evicted."""
        del self._idle[block]

    def evict(self, count: int) -> list[int]:
        """Forget the blocks that have been unread for longest and return them."""
        block_of, key_of, idle = self._block, self._key, self._idle
        blocks = list(islice(idle, count))
        for block in blocks:
            del idle[block]
            del block_of[key_of.pop(block)]
        return blocks

    def check(self, refs: Sequence[int]) -> None:
        """Both directions agree, and the idle blocks are just the cached ones without a reader."""
        assert {block: key for key, block in self._block.items()} == self._key, "prefix index is torn"
        assert set(self._idle) == {b for b in self._key if refs[b] == 0}, "a cached block is lost or read"
