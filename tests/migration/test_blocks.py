"""The blocks of a session: each once, in an order both ends count alike, without what is cached yonder."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.request import Request, Sampling
from engine.sequence import Sequence
from migration.blocks import BlockList, most

SIZE = 4


def sequence(blocks: list[int], computed: int, prompt: int = 100) -> Sequence:
    request = Request("r", tuple(range(prompt)), Sampling(max_tokens=100, n=9))
    return Sequence(request, computed=computed, blocks=blocks)


def choice(number: int, blocks: list[int], computed: int) -> Sequence:
    return replace(sequence(blocks, computed), choice=number)


def test_only_full_blocks_are_final_before_the_freeze() -> None:
    blocks = BlockList(0, SIZE)
    assert blocks.add([sequence([7, 8, 9], 11)], frozen=False) == 2
    assert blocks.add([sequence([7, 8, 9], 11)], frozen=True) == 3
    assert blocks[0:3] == [7, 8, 9]


def test_shared_blocks_are_listed_once() -> None:
    blocks = BlockList(0, SIZE)
    assert blocks.add([choice(0, [7, 8, 1], 9), choice(1, [7, 8, 2], 9)], frozen=True) == 4
    assert blocks[0:4] == [7, 8, 1, 2]


def test_every_choices_first_blocks_are_the_cached_ones() -> None:
    blocks = BlockList(2, SIZE)
    assert blocks.add([choice(0, [7, 8, 1], 12), choice(1, [5, 6, 2], 12)], frozen=True) == 4
    assert [blocks.index[block] for block in (7, 8, 5, 6, 1, 2)] == [0, 1, 0, 1, 2, 3]
    assert blocks[2:4] == [1, 2]


def test_what_is_being_written_is_counted_apart_and_once() -> None:
    blocks = BlockList(0, SIZE)
    assert blocks.add([choice(0, [7, 8], 6), choice(1, [7, 8], 6), choice(2, [7, 9], 5)], frozen=False) == 1
    assert blocks.rest == 2
    blocks.add([choice(0, [7, 8], 6)], frozen=True)
    assert blocks.rest == 0


def test_a_block_of_a_choice_that_ended_is_listed_again_when_another_fills_it() -> None:
    blocks = BlockList(0, SIZE)
    blocks.add([choice(0, [7, 1], 8), choice(1, [7, 2], 8)], frozen=False)
    assert blocks.add([choice(0, [7, 1, 2], 12)], frozen=True) == 4
    assert (blocks.index[7], blocks.index[1], blocks.index[2]) == (0, 1, 3)
    assert blocks[0:4] == [7, 1, 2, 2]


def test_a_block_that_comes_to_the_same_place_of_another_choice_is_listed_again() -> None:
    blocks = BlockList(0, SIZE)
    blocks.add([choice(0, [7], 4), choice(1, [7, 2], 8)], frozen=False)
    assert blocks.add([choice(0, [7, 2], 8)], frozen=True) == 3
    assert blocks.index[2] == 2


def test_a_block_that_is_no_longer_final_is_listed_again_where_it_comes_to_stand() -> None:
    blocks = BlockList(0, SIZE)
    blocks.add([choice(0, [3, 9, 4, 1], 16)], frozen=False)
    blocks.add([choice(0, [3, 10, 4], 11)], frozen=False)
    blocks.add([choice(0, [3, 10, 8, 4, 2], 18)], frozen=True)
    places = [blocks.index[block] for block in (3, 10, 8, 4, 2)]
    assert len(set(places)) == 5
    assert [blocks[place : place + 1] for place in places] == [[3], [10], [8], [4], [2]]
    assert blocks.index[4] > 2


def test_a_shared_block_stays_listed_while_one_of_its_choices_lives() -> None:
    blocks = BlockList(0, SIZE)
    blocks.add([choice(0, [7, 1], 8), choice(1, [7, 2], 8)], frozen=False)
    assert blocks.add([choice(1, [7, 2], 8)], frozen=True) == 3
    assert blocks.index == {7: 0, 2: 2}


@given(st.integers(0, 5), st.lists(st.lists(st.integers(0, 40), max_size=10, unique=True), max_size=3))
def test_places_are_dense_and_never_change(cached: int, steps: list[list[int]]) -> None:
    blocks, table = BlockList(cached, SIZE), list[int]()
    known: dict[int, int] = {}
    for step in steps:
        table += [block for block in step if block not in table]
        blocks.add([sequence(list(table), len(table) * SIZE)], frozen=False)
        assert known.items() <= blocks.index.items()
        known = dict(blocks.index)
        assert len(blocks) == max(cached, len(table))
        assert sorted(set(known.values()) | set(range(cached))) == list(range(len(blocks)))


@pytest.mark.parametrize(
    ("prompt", "lengths", "blocks"),
    [(1, (), 1), (4, (), 1), (5, (), 2), (5, (0, 0), 2), (5, (3, 4), 5), (5, (0, 3), 4)],
)
def test_the_reservation_is_for_all_choices(prompt: int, lengths: tuple[int, ...], blocks: int) -> None:
    request = Request("r", tuple(range(prompt)), Sampling(max_tokens=100, n=2))
    assert most(request, lengths, SIZE) == blocks
