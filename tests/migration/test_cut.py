"""Two ends with blocks of different sizes: bytes land where they belong, and tokens are the same."""

from __future__ import annotations

import random
from itertools import permutations
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.request import Request, Sampling
from engine.sequence import Sequence as LiveSequence
from migration.cut import Cut
from migration.session import Bounds
from tests.engine.mutants import mutate
from tests.engine.toy import ToyRunner, alone, prompt, request
from tests.migration.mesh import Itinerary, mesh
from tests.migration.pair import BOUND, ToyStore, pair
from tests.migration.test_live import shape, stop

BOTH = pytest.mark.parametrize("forced", ["shm", "tcp"])
SIZES = pytest.mark.parametrize("sizes", [(8, 32), (32, 8), (8, 8), (6, 4), (5, 16), (1, 3)], ids=str)


def sequence(tokens: int, blocks: list[int], choice: int = 0) -> LiveSequence:
    one = Request("r", (1,) * tokens, Sampling(max_tokens=4))
    return LiveSequence(one, choice, computed=tokens, blocks=blocks)


@given(st.integers(1, 9), st.integers(1, 9), st.integers(1, 40), st.randoms(use_true_random=False))
def test_every_slot_lands_at_its_position(here: int, there: int, computed: int, rng: random.Random) -> None:
    """Against the definition: position p is slot p % size of block p // size, on either side."""
    source, target = ToyRunner(64, here), ToyRunner(64, there)
    table = rng.sample(range(64), -(-computed // here))
    for position in range(computed):
        source.store[table[position // here]][position % here] = (position, rng.randrange(50))
    cut = Cut(ToyStore(source), there)
    (cut_table,) = (one.blocks for one in cut.of([sequence(computed, table)]))
    assert len(cut_table) == -(-computed // there)
    payload = bytearray(len(cut_table) * cut.block_nbytes)
    cut.gather(cut_table, memoryview(payload))
    landed = rng.sample(range(64), len(cut_table))
    ToyStore(target).scatter(landed, memoryview(payload))
    assert target.read(landed, computed) == source.read(table, computed)


def test_choices_share_a_piece_only_if_they_share_all_of_it() -> None:
    cut = Cut(ToyStore(ToyRunner(64, 8)), 32)
    first, second = cut.of([sequence(100, [*range(13)], 0), sequence(100, [*range(5), *range(20, 28)], 1)])
    assert first.blocks[0] == second.blocks[0]
    assert not set(first.blocks[1:]) & set(second.blocks[1:])


def test_a_piece_that_has_grown_is_another() -> None:
    cut = Cut(ToyStore(ToyRunner(64, 8)), 32)
    (before,), (after,) = cut.of([sequence(10, [0, 1])]), cut.of([sequence(30, [0, 1, 2, 3])])
    assert before.blocks != after.blocks


def test_blocks_of_the_same_size_keep_their_numbers() -> None:
    cut = Cut(ToyStore(ToyRunner(64, 8)), 8)
    (same,) = cut.of([sequence(20, [9, 4, 7])])
    assert same.blocks == [9, 4, 7]


@BOTH
@SIZES
def test_a_handoff_between_blocks_of_different_sizes_gives_the_same_tokens(
    forced: str, sizes: tuple[int, int]
) -> None:
    with pair(forced, blocks=(512, 512), sizes=sizes) as both:
        requests = [
            request(f"r{number}", prompt(length, number), 12, n=1 + number % 3)
            for number, length in enumerate([1, 5, 7, 8, 9, 31, 32, 33, 64, 70])
        ]
        both.start(*requests)
        for one in requests:
            for choice in range(one.sampling.n):
                assert both.home.output(one, choice) == alone(one, choice)
        both.rest()
        assert both.prefill.status().result(20).handoffs == len(requests)


def test_a_prefix_that_the_destination_has_in_larger_blocks_is_not_sent() -> None:
    with pair(blocks=(512, 64), sizes=(8, 32)) as both:
        first, second = (request(f"r{number}", prompt(70), 8) for number in range(2))
        for one in (first, second):
            both.p.store.gathered.clear()
            both.start(one)
            assert both.home.output(one) == alone(one)
            both.rest()
        # Two blocks of 32 are there: what is left of 70 tokens begins in the ninth block of 8.
        assert len(both.p.store.gathered) == 1


def travelling(count: int, forced: str, **options: Any) -> None:
    """Requests of all kinds go to and fro between instances with blocks of 4, 16 and 6 slots."""
    rng = random.Random(forced)
    options |= {"bounds": Bounds(moves=64, last_blocks=4), "max_sessions": 64}
    with mesh(forced, sizes=(4, 16, 6), pace=0.004, blocks=1024, **options) as all_:
        for source, to in permutations(all_.nodes, 2):  # some transports take a second to connect
            first = request(f"{source}-{to}", prompt(5), 100)
            all_.start(source, first)
            all_.moved(first, source, to)
            all_.nodes[source].role.cancel(first.id).result(BOUND)
            all_.nodes[to].role.cancel(first.id).result(BOUND)
        itinerary = Itinerary(all_)
        requests = [shape(rng, f"r{number}") for number in range(count)]
        for one in requests:
            stops = sorted({stop(rng, one) for _ in range(rng.choice([0, 1, 1, 2, 3]))})
            itinerary.plan(one, [(tokens, rng.choice(list(all_.nodes))) for tokens in stops])
        for one in requests:
            all_.start(rng.choice(list(all_.nodes)), one)
        all_.served(*requests)
        outcomes = itinerary.outcomes()
        committed = sum(moved.committed for moved in outcomes)
        # Some are planned at the last token and come too late: of few requests two may be over a tenth.
        assert committed >= 0.9 * itinerary.planned - 2, [
            one.outcome for one in outcomes if not one.committed
        ]


@BOTH
def test_streams_do_not_depend_on_the_block_sizes_that_a_request_meets(forced: str, full: bool) -> None:
    travelling(300 if full else 30, forced)


MUTANTS = {
    "no offset into the first block": ("_table", "first % self._here", "0"),
    "the tail of another piece": ("_slots", "piece.start : piece.start + self.size", ": self.size"),
    "pieces known by their first block alone": ("_table", "run)", "run[:1])"),
    "pieces known by one of their blocks": ("_number", "setdefault(piece,", "setdefault(piece.blocks[0],"),
}


@pytest.mark.parametrize("name", MUTANTS)
def test_a_wrong_cut_would_be_noticed(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    mutate(monkeypatch, Cut, *MUTANTS[name])
    with pytest.raises((AssertionError, IndexError)):
        test_every_slot_lands_at_its_position()
