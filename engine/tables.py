"""The block tables of sequences: what they take from the pool, share, copy on write and give back."""

from __future__ import annotations

import math
from collections import deque

from engine import prefix_cache
from engine.blocks import BlockPool
from engine.sequence import Sequence


class BlockTables:
    """Keeps `Sequence.blocks` and the pool's reference counts in step.

    While a step is in flight (`hold` … `let_go`) nothing that is given back may be used again: the
    step still writes there. It goes back to the pool when the last step is over that may.
    """

    def __init__(self, pool: BlockPool, watermark: float) -> None:
        self.pool = pool
        self._spare = math.ceil(pool.total * watermark)
        self._given: deque[list[list[int]]] = deque()

    def hold(self) -> None:
        """A step takes off."""
        self._given.append([])

    def let_go(self) -> None:
        """The oldest step is over: what was given back before another took off is free."""
        for blocks in self._given.popleft():
            self.pool.release(blocks)

    @property
    def given(self) -> list[list[int]]:
        """Tables given back while steps are in flight: still counted as used."""
        return [blocks for one in self._given for blocks in one]

    def extend_keys(self, sequence: Sequence, keys: list[bytes], start: bytes, stop: int) -> None:
        """Bring the prefix keys up to the full blocks of the first `stop` tokens."""
        size = self.pool.block_size
        if not self.pool.caching:
            return
        if not keys:
            keys += prefix_cache.of_prompt(start, sequence.request.prompt, size)[: stop // size]
        done = len(keys) * size
        if stop - done >= size:
            prefix_cache.extend(keys, start, sequence.tokens(done, stop), size)

    def lookup(self, sequence: Sequence, keys: list[bytes]) -> list[int]:
        """Cached blocks that spare work. The last known token is always computed: its logits are needed."""
        return self.pool.find(keys, (len(sequence) - 1) // self.pool.block_size)

    def admit(self, sequence: Sequence, keys: list[bytes], *, alone: bool) -> bool:
        """Blocks for all known tokens or none: False if they are not there.

        `alone` admits into the watermark too: nobody runs who could grow into it.
        """
        found = self.lookup(sequence, keys)
        fresh = self.pool.blocks_for(len(sequence)) - len(found)
        if not self.room(found, fresh, alone=alone):
            return False
        self.pool.share(found)
        sequence.blocks = found + self.pool.allocate(fresh)
        sequence.cached = sequence.computed = len(found) * self.pool.block_size
        return True

    def readmit(self, sequence: Sequence, *, alone: bool) -> bool:
        """Blocks for all known tokens of one whose KV comes back from another tier; False as in `admit`."""
        need = self.pool.blocks_for(len(sequence))
        if not self.room([], need, alone=alone):
            return False
        sequence.blocks = self.pool.allocate(need)
        return True

    def room(self, found: list[int], fresh: int, *, alone: bool) -> bool:
        """Whether `found` cached blocks can be pinned and `fresh` ones allocated above the watermark."""
        spare = 0 if alone else self._spare
        return fresh + self.pool.idle(found) + spare <= self.pool.available

    def missing(self, sequence: Sequence, tokens: int) -> int:
        """Blocks to allocate before `sequence` can compute `tokens` more, a copy on write included."""
        size = self.pool.block_size
        first = sequence.computed // size
        held = len(sequence.blocks)
        need = -(-(sequence.computed + tokens) // size) - held
        if first < held and self.pool.refs(sequence.blocks[first]) > 1:
            need += 1
        return need

    def grow(self, sequence: Sequence, tokens: int) -> tuple[tuple[int, int], ...]:
        """Make the next `tokens` slots writable, and say which (source, target) block to copy for that.

        The block that is written first is the only one that others can read too; its last reader
        writes in place.
        """
        first = sequence.computed // self.pool.block_size
        copies: tuple[tuple[int, int], ...] = ()
        if first < len(sequence.blocks) and self.pool.refs(sequence.blocks[first]) > 1:
            source, (target,) = sequence.blocks[first], self.pool.allocate(1)
            sequence.blocks[first] = target
            self.pool.release((source,))
            copies = ((source, target),)
        need = self.pool.blocks_for(sequence.computed + tokens) - len(sequence.blocks)
        if need > 0:
            sequence.blocks += self.pool.allocate(need)
        return copies

    def advance(self, sequence: Sequence, tokens: int, keys: list[bytes], start: bytes) -> None:
        """`tokens` more are computed: the blocks that they filled can be found by their prefix."""
        size = self.pool.block_size
        full = sequence.computed // size
        sequence.computed += tokens
        now_full = sequence.computed // size
        if self.pool.caching and now_full > full:
            self.extend_keys(sequence, keys, start, sequence.computed)
            self.pool.register(sequence.blocks[full:now_full], keys[full:now_full])

    def fork(self, sequence: Sequence, choice: int) -> Sequence:
        """Another choice that shares every block of `sequence`."""
        self.pool.share(sequence.blocks)
        return Sequence(
            request=sequence.request,
            choice=choice,
            computed=sequence.computed,
            phase=sequence.phase,
            blocks=list(sequence.blocks),
            epoch=sequence.epoch,
            home=sequence.home,
            cached=sequence.cached,
        )

    def close(self, sequence: Sequence) -> None:
        """Give all blocks back. A plan in flight keeps its own reference to the old table."""
        if sequence.blocks:
            if self._given:
                self._given[-1].append(sequence.blocks)
            else:
                self.pool.release(sequence.blocks)
        sequence.blocks = []

    def recount(self, sequence: Sequence, keys: list[bytes], start: bytes) -> None:
        """KV that came from elsewhere can be found by its prefix from now on."""
        if self.pool.caching:
            self.extend_keys(sequence, keys, start, sequence.computed)
            self.pool.register(sequence.blocks, keys)
