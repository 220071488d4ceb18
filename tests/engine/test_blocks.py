"""No block is lost, freed twice or written to by one while another reads it."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.blocks import BlockPool
from engine.errors import Overloaded
from engine.prefix_cache import PrefixCache
from engine.sequence import Phase, Sequence
from engine.tables import BlockTables
from tests.engine.mutants import mutate
from tests.engine.toy import request


def ledger(pool: BlockPool) -> tuple[int, int, int, int]:
    return pool.free, pool.used, pool.cached, pool.reserved


def test_every_block_is_in_one_of_four_states() -> None:
    pool = BlockPool(10, 4)
    used, reserved, cached = pool.allocate(3), pool.reserve(2), pool.allocate(1)
    pool.register([cached[0]], [b"key"])
    pool.release(cached)
    pool.check()
    assert ledger(pool) == (4, 3, 1, 2)
    pool.settle(reserved)
    pool.release(used)
    assert ledger(pool) == (7, 2, 1, 0)


def test_an_allocation_beyond_the_pool_takes_nothing_and_names_the_setting() -> None:
    pool = BlockPool(3, 4)
    pool.allocate(1)
    with pytest.raises(Overloaded, match=r"engine\.kv_memory"):
        pool.allocate(3)
    assert ledger(pool) == (2, 1, 0, 0)


def test_cached_blocks_give_way_when_no_free_ones_are_left() -> None:
    pool = BlockPool(2, 4)
    (block,) = pool.allocate(1)
    pool.register([block], [b"key"])
    pool.release([block])
    assert pool.available == 2
    assert sorted(pool.allocate(2)) == [0, 1]
    assert pool.find([b"key"], 1) == []


def test_a_cached_block_that_is_read_is_not_evicted() -> None:
    pool = BlockPool(2, 4)
    (block,) = pool.allocate(1)
    pool.register([block], [b"key"])
    pool.release([block])
    pool.share(pool.find([b"key"], 1))
    with pytest.raises(Overloaded):
        pool.allocate(2)


def test_the_end_of_a_prefix_is_evicted_before_its_start() -> None:
    pool = BlockPool(3, 4)
    blocks = pool.allocate(3)
    for block, key in zip(blocks, (b"1", b"2", b"3"), strict=True):
        pool.register([block], [key])
    pool.release(blocks)
    pool.allocate(1)
    assert pool.find([b"1", b"2", b"3"], 3) == blocks[:2]


def test_a_block_freed_twice_is_a_bug_that_shows() -> None:
    pool = BlockPool(2, 4)
    blocks = pool.allocate(1)
    pool.release(blocks)
    with pytest.raises(AssertionError, match="freed twice"):
        pool.release(blocks)


def test_a_reserved_block_that_is_released_is_free() -> None:
    pool = BlockPool(2, 4)
    pool.release(pool.reserve(2))
    assert ledger(pool) == (2, 0, 0, 0)


class Contents:
    """Tables on a pool beside a model that stores what each sequence should read."""

    SIZE = 3

    def __init__(self, rng: random.Random, total: int = 24) -> None:
        self.rng = rng
        self.tables = BlockTables(BlockPool(total, self.SIZE), 0.0)
        self.store = [[(-1, -1)] * self.SIZE for _ in range(total)]
        self.sequences: list[Sequence] = []
        self.keys: dict[int, list[bytes]] = {}
        self.made = 0

    @property
    def pool(self) -> BlockPool:
        return self.tables.pool

    def open(self) -> None:
        prompt = [self.rng.randrange(2) for _ in range(self.rng.randrange(1, 12))]
        sequence = Sequence(request("r", prompt), choice=self.made, phase=Phase.PREFILL)
        keys = self.keys[self.made] = []
        self.made += 1
        self.tables.extend_keys(sequence, keys, b"", len(sequence))
        if self.tables.admit(sequence, keys, alone=False):
            self.sequences.append(sequence)
            self.write(sequence)

    def write(self, sequence: Sequence) -> None:
        tokens = sequence.remaining
        if tokens == 0 or self.tables.missing(sequence, tokens) > self.pool.available:
            return
        for source, target in self.tables.grow(sequence, tokens):
            self.store[target] = list(self.store[source])
        for position in range(sequence.computed, len(sequence)):
            (token,) = sequence.tokens(position, position + 1)
            block = sequence.blocks[position // self.SIZE]
            assert self.pool.refs(block) == 1, "written while another reads it"
            self.store[block][position % self.SIZE] = (position, token)
        self.tables.advance(sequence, tokens, self.keys[sequence.choice], b"")

    def append(self) -> None:
        if self.sequences:
            sequence = self.rng.choice(self.sequences)
            if sequence.remaining == 0:
                sequence.output.append(self.rng.randrange(2))
            self.write(sequence)

    def fork(self) -> None:
        if self.sequences:
            parent = self.rng.choice(self.sequences)
            child = self.tables.fork(parent, self.made)
            child.output = list(parent.output)
            self.keys[self.made] = list(self.keys[parent.choice])
            self.made += 1
            self.sequences.append(child)

    def close(self) -> None:
        if self.sequences:
            self.tables.close(self.sequences.pop(self.rng.randrange(len(self.sequences))))

    def check(self) -> None:
        self.pool.check()
        entries = sum(len(sequence.blocks) for sequence in self.sequences)
        assert entries == sum(self.pool.refs(block) for block in range(self.pool.total))
        for sequence in self.sequences:
            for position, token in enumerate(sequence.tokens(0, sequence.computed)):
                held = self.store[sequence.blocks[position // self.SIZE]][position % self.SIZE]
                assert held == (position, token)

    def run(self, operations: int, every: int = 1) -> None:
        for number in range(operations):
            self.rng.choice((self.open, self.append, self.append, self.append, self.fork, self.close))()
            if number % every == 0:
                self.check()
        while self.sequences:
            self.close()
        self.pool.check()
        assert self.pool.free + self.pool.cached == self.pool.total


@given(seed=st.integers(0, 2**32))
def test_each_sequence_reads_what_it_wrote_whatever_others_do(seed: int) -> None:
    Contents(random.Random(seed)).run(80)


def test_no_reference_is_lost_in_a_long_run(full: bool) -> None:
    """`append` looks at each write; the whole pool is counted now and then."""
    Contents(random.Random(5)).run(100_000 if full else 3_000, every=20)


MUTANTS = {
    "in-place write at ref > 1": (BlockTables, "grow", "> 1", "> 99"),
    "copy left out": (BlockTables, "grow", "copies = ((source, target),)", "pass"),
    "source of a copy kept": (BlockTables, "grow", "self.pool.release((source,))", "pass"),
    "freed block still referenced": (BlockPool, "release", "refs[block] == 0", "True"),
    "referenced block evicted": (PrefixCache, "revive", "del self._idle[block]", "pass"),
    "evicted block still known": (
        PrefixCache,
        "evict",
        "del block_of[key_of.pop(block)]",
        "key_of.pop(block)",
    ),
    "last block of a table not freed": (
        BlockTables,
        "close",
        "release(sequence.blocks)",
        "release(sequence.blocks[:-1])",
    ),
}


@pytest.mark.parametrize("name", MUTANTS)
def test_a_wrong_block_table_is_found_out(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    mutate(monkeypatch, *MUTANTS[name])
    with pytest.raises((AssertionError, KeyError)):
        Contents(random.Random(5)).run(3_000)
