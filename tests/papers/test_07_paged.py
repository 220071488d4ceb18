"""PagedAttention: what blocks on demand are worth in memory, and how few a fork copies.

That paged attention computes what dense attention does is tested with the kernels, and that preemption
changes no token with the engine.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest

from decode_pool.continuous_batching import ContinuousBatching
from engine.blocks import BlockPool
from engine.sequence import Sequence
from engine.tables import BlockTables
from simulator.papers import paged
from simulator.report import summarise
from tests.engine.mutants import mutate
from tests.engine.toy import Bench, prompt, request


def fork() -> tuple[int, list[int], int]:
    """(blocks of four choices of a prompt of 37 tokens, readers of the first two, copies when they part)."""
    bench = Bench(total=64, block_size=16, policy=ContinuousBatching(64))
    bench.core.submit(request("r", prompt(37), 8, n=4))
    bench.step()
    plan = bench.core.plan(5.0)
    assert plan is not None
    bench.core.commit(plan, bench.runner.run(plan), 6.0)
    tables = [one.blocks for one in bench.core.sequences("r")]
    readers = [bench.core.pool.refs(block) for block in tables[0][:2]]
    return len({block for table in tables for block in table}), readers, len(plan.copies)


def test_four_choices_of_one_prompt_copy_its_last_block_three_times() -> None:
    """Six blocks in all, not twelve: two full ones have four readers each, the last owner writes in place."""
    assert fork() == (6, [4, 4], 3)


def test_to_write_where_others_read_would_be_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    mutate(monkeypatch, BlockTables, "grow", "> 1:", "> 99:")
    assert fork() != (6, [4, 4], 3)


def whole(share: Callable[[BlockTables, Sequence, int], Sequence]) -> Callable[..., Sequence]:
    """A fork that copies the whole table."""

    def copy(tables: BlockTables, sequence: Sequence, choice: int) -> Sequence:
        child = share(tables, sequence, choice)
        tables.pool.release(child.blocks)
        child.blocks = tables.pool.allocate(len(child.blocks))
        return child

    return copy


def test_to_copy_the_whole_sequence_would_be_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(BlockTables, "fork", whole(BlockTables.fork))
    assert fork() == (12, [1, 1], 0)


class Beam:
    """Four candidates of a beam search over blocks of 16 tokens, as in figure 9 of the paper."""

    def __init__(self) -> None:
        self.pool = BlockPool(32, 16, False)
        self.tables = BlockTables(self.pool, 0.0)
        root = Sequence(request("r", prompt(16)))
        self.tables.admit(root, [], alone=True)
        self.write(root, 16)
        apart = self.tables.fork(root, 3)
        self.write(apart, 48)
        self.write(root, 32)
        self.candidates = [root, self.tables.fork(root, 1), self.tables.fork(root, 2), apart]
        for one in self.candidates[:3]:
            self.write(one, 16)

    def write(self, sequence: Sequence, tokens: int) -> int:
        """Blocks that were copied for it."""
        copies = self.tables.grow(sequence, tokens)
        self.tables.advance(sequence, tokens, [], b"")
        return len(copies)

    def readers(self) -> list[list[int]]:
        """Of each candidate: how many read each of its blocks."""
        return [[self.pool.refs(block) for block in one.blocks] for one in self.candidates]

    def step(self) -> list[int]:
        """All that go on are of candidates 1 and 2; gives the places of the blocks that this frees."""
        first, second = self.candidates[1:3]
        lost = [one.blocks for one in (self.candidates[0], self.candidates[3])]
        kept = [first, self.tables.fork(first, 4), second, self.tables.fork(second, 5)]
        for one in (self.candidates[0], self.candidates[3]):
            self.tables.close(one)
        self.candidates = kept
        return [at for blocks in lost for at, block in enumerate(blocks) if not self.pool.refs(block)]


def test_beam_search_frees_and_shares_what_the_papers_figure_9_does() -> None:
    """Blocks 2, 4, 5 and 8 are freed: of candidate 0 its last, of candidate 3 all but the prompt's.

    Then everybody shares blocks 0, 1 and 3, each two candidates block 6 or 7, and 9 to 12 are new.
    """
    beam = Beam()
    assert beam.readers() == [[4, 3, 3, 1], [4, 3, 3, 1], [4, 3, 3, 1], [4, 1, 1, 1]]
    assert beam.pool.used == 9
    assert beam.step() == [3, 1, 2, 3]
    assert beam.readers() == [[4, 4, 4, 2]] * 4
    assert [beam.write(one, 16) for one in beam.candidates] == [0, 0, 0, 0]
    assert beam.readers() == [[4, 4, 4, 2, 1]] * 4
    assert beam.pool.used == 9


def test_candidates_that_part_within_a_block_copy_it_but_for_the_last_reader() -> None:
    beam = Beam()
    for one in beam.candidates:
        beam.write(one, 5)
    beam.step()
    assert [beam.write(one, 3) for one in beam.candidates] == [1, 0, 1, 0]


def test_a_block_that_is_freed_while_others_read_it_would_be_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    mutate(monkeypatch, BlockPool, "release", "refs[block] == 0", "True")
    with pytest.raises(AssertionError):
        test_beam_search_frees_and_shares_what_the_papers_figure_9_does()


@pytest.fixture(scope="module")
def held(full: bool) -> dict[str, paged.Saturated]:
    return {arm: paged.saturated(arm, 400 if full else 150, 1) for arm in ("paged", "oracle", "max")}


def test_twice_as_many_requests_run_as_with_reservations_of_the_true_length(
    held: dict[str, paged.Saturated],
) -> None:
    """Published: 2.2 times Orca's oracle, with buddy rounding."""
    assert held["paged"].running >= 2.0 * held["oracle"].running


def test_many_more_run_than_with_reservations_of_the_longest(held: dict[str, paged.Saturated]) -> None:
    """Published: 4.3 times."""
    assert held["paged"].running >= 4.0 * held["max"].running


def test_of_the_memory_in_use_nearly_all_holds_tokens(held: dict[str, paged.Saturated]) -> None:
    """96.3 % in the paper, of what is in blocks at each step."""
    assert held["paged"].useful >= 0.963


@pytest.mark.parametrize(("block", "most"), [(128, 0.90), (256, 0.80)])
def test_with_larger_blocks_it_would_not(block: int, most: float) -> None:
    assert paged.saturated("paged", 60, 1, block).useful <= most


def test_the_rate_that_is_sustained_is_higher_by_what_was_published(full: bool) -> None:
    """0.2 s a token, at a rate of which Orca's oracle fails at a 1.7th, and who reserves the longest at a
    2.7th."""
    if not full:
        pytest.skip("three runs of 3,000 requests: --full")
    rate = 4.3
    late = {
        arm: summarise(paged.run(arm, rate / times, 3000, 1))["per_token"]["mean"]
        for arm, times in (("paged", 1.0), ("oracle", 1.7), ("max", 2.7))
    }
    assert late["paged"] <= 0.2 < min(late["oracle"], late["max"])
