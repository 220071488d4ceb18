"""Which full blocks hold which token prefixes, and which of them to forget first.

The key of a full block is SHA-256 over the key of the block before it and its own tokens; the first
is chained to a root that names everything else the KV depends on. So one key stands for a whole
prefix, and it is the same in every process of every instance.
"""

from __future__ import annotations

import hashlib
import struct
from collections import OrderedDict
from collections.abc import Iterable, Sequence


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


def root(model: bytes, adapter: str, salt: str) -> bytes:
    """What the first block of a request is chained to: its model, its adapter, its tenant's salt."""
    return fingerprint(model, adapter, salt)


def extend(keys: list[bytes], start: bytes, tokens: Sequence[int], block_size: int) -> None:
    """Append the keys of the full blocks in `tokens`, which follow those that `keys` covers."""
    full = len(tokens) // block_size
    if not full:
        return
    data = struct.pack(f"<{full * block_size}I", *tokens[: full * block_size])
    parent, size, sha256 = keys[-1] if keys else start, 4 * block_size, hashlib.sha256
    for first in range(0, len(data), size):
        parent = sha256(parent + data[first : first + size]).digest()
        keys.append(parent)


class PrefixCache:
    """Key to block and back, with the unreferenced blocks in the order in which they may go.

    Holds no reference counts: the pool says when a block loses its last reader (`retire`) and when
    it gains one again (`revive`). All operations are O(1).
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

    def insert(self, key: bytes, block: int) -> None:
        """`block`, which is being read, holds the prefix `key`. The first block of a key stays it."""
        if key not in self._block and block not in self._key:
            self._block[key] = block
            self._key[block] = key

    def retire(self, block: int) -> bool:
        """Nobody reads `block` any more: True if it stays cached, as the last to be evicted."""
        if block not in self._key:
            return False
        self._idle[block] = None
        return True

    def revive(self, block: int) -> None:
        """`block` is read again: it may not be evicted."""
        del self._idle[block]

    def evict(self) -> int:
        """Forget the block that has been unread for longest and return it."""
        block, _ = self._idle.popitem(last=False)
        del self._block[self._key.pop(block)]
        return block

    def check(self, refs: Sequence[int]) -> None:
        """Both directions agree, and the idle blocks are just the cached ones without a reader."""
        assert {block: key for key, block in self._block.items()} == self._key, "prefix index is torn"
        assert set(self._idle) == {b for b in self._key if refs[b] == 0}, "a cached block is lost or read"
