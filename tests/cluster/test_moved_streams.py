"""Three hundred requests of every kind, each moved up to three times through whole instances: what their
clients get is what they get of requests that stay."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from cluster.config import TransferConfig
from cluster.stream_order import Piece
from engine.request import Request, Sampling
from migration.blocks import BlockList
from migration.moved import Moved
from model.grammar import of_schema
from tests.cluster.itinerary import ANYWHERE, BOUND, EDGE, ENDED, FIRST, LAST, NOT_THERE, Itinerary, Move
from tests.cluster.pools import Pools, pools
from tests.engine.mutants import mutate
from tests.migration.nccl_double import DoubleDevice
from tests.migration.test_nixl import installed as nixl_is_installed

CLOSE = 1e-4
"""How far log-probabilities may lie apart where batches differ."""

MOST_SWAPS = 3
"""Places of 300 requests where two alternatives are nearly as likely."""

TOGETHER = 24
"""Requests at a time."""

WORDS = of_schema({"type": "array", "items": {"type": "string", "maxLength": 9}, "minItems": 40})
"""An answer that goes on for as long as it may."""

DAMAGED = "delay=1ms damage=0.03 cut=0.001"


@dataclass(frozen=True)
class Way:
    """How requests travel, and the numbers that they are made of."""

    transport: str
    dtype: str
    exact: bool
    fault: str = ""

    def __str__(self) -> str:
        return f"{self.transport}{'-damaged' * bool(self.fault)}-{self.dtype}{'-exact' * self.exact}"


WAYS = [
    Way(transport, dtype, exact, fault)
    for dtype, exact in (("float32", False), ("float32", True), ("bfloat16", True))
    for transport, fault in (("shm", ""), ("tcp", ""), ("shm", DAMAGED), ("tcp", DAMAGED))
]

PAIRED = [
    Way(transport, dtype, exact, fault)
    for transport in ("nccl", "nixl")
    for dtype, exact, fault in (("float32", False, ""), ("float32", False, DAMAGED), ("bfloat16", True, ""))
]
"""Ways by roads of their own: NCCL's by a double of the GPU, NIXL's where it is installed."""


def requests(rng: random.Random, count: int) -> list[Request]:
    """Every way of drawing and ending that leaves a trace in what a request carries."""
    made = []
    for number in range(count):
        prompt = tuple(rng.randrange(256) for _ in range(rng.choice([1, 5, 15, 16, 17, 40, 90])))
        sampling = Sampling(
            max_tokens=rng.randrange(30, 70),
            temperature=(0.0, 0.9)[number % 2],
            top_p=rng.choice([1.0, 0.95]),
            seed=number,
            n=rng.choice([1, 1, 2, 3]),
            presence_penalty=rng.choice([0.0, 0.7]),
            frequency_penalty=rng.choice([0.0, 0.3]),
            repetition_penalty=rng.choice([1.0, 1.1]),
            logprobs=rng.choice([None, 2]),
            stop=rng.choice([(), (), ("e", "\n")]),
            min_tokens=rng.choice([0, 24]),
            ignore_eos=number % 4 == 0,
        )
        if number % 7 == 3:
            sampling = replace(sampling, grammar=WORDS, min_tokens=0, ignore_eos=False)
        made.append(Request(f"{number}", prompt, sampling))
    return made


def check_same(still: Sequence[Piece], moved: Sequence[Piece], *, exact: bool) -> int:
    """All that a client gets; without `exact` log-probabilities may lie CLOSE.

    Two alternatives may then change places where they are as close to each other. Returns how many did.
    """
    one, other = ([_text(piece) for piece in _ordered(pieces)] for pieces in (still, moved))
    assert one == other
    swaps = 0
    for left, right in zip(_ordered(still), _ordered(moved), strict=True):
        values = [[piece.logprob, *(value for _, value in piece.top)] for piece in (left, right)]
        if exact:
            assert (left.logprob, left.top) == (right.logprob, right.top)
        else:
            assert values[0] == pytest.approx(values[1], abs=CLOSE)
            swaps += [token for token, _ in left.top] != [token for token, _ in right.top]
    return swaps


def _ordered(pieces: Sequence[Piece]) -> list[Piece]:
    return sorted(pieces, key=lambda one: (one.choice, one.index, one.token is None))


def _text(one: Piece) -> tuple[object, ...]:
    return one.choice, one.index, one.token, one.text, one.finish, one.stop_reason


def shortest(pieces: Sequence[Piece]) -> int:
    """Tokens of the choice that ends first."""
    counts: dict[int, int] = {}
    for one in pieces:
        counts[one.choice] = counts.get(one.choice, 0) + (one.token is not None)
    return min(counts.values())


async def ask(all_: Pools, every: Sequence[Request]) -> list[list[Piece]]:
    room = asyncio.Semaphore(TOGETHER)

    async def one(request: Request) -> list[Piece]:
        async with room:
            return await all_.stream(request)

    return list(await asyncio.gather(*map(one, every)))


async def move_about(
    way: Way, count: int, model: Path, cache: Path, transfer: TransferConfig = TransferConfig(max_moves=32)
) -> list[tuple[Move, Moved]]:
    """Ask once in peace and once on the move; all must be the same, and nothing may be left."""
    rng = random.Random(f"{way}")
    async with pools(
        cache, prefill=False, transport=way.transport, decodes=3, budget=96, model=model,
        dtype=way.dtype, exact=way.exact, transfer=transfer,
    ) as all_:  # fmt: skip
        still = requests(rng, count)
        expected = await ask(all_, still)
        moving = [Request(f"moved-{one.id}", one.prompt, one.sampling) for one in still]
        itinerary = Itinerary(all_, rng)
        for request, pieces in zip(moving, expected, strict=True):
            itinerary.plan(request, shortest(pieces))
        for instance in all_.instances:
            instance.instance.afflict(way.fault)
        found = await ask(all_, moving)
        moves = itinerary.moves()
        swaps = [check_same(one, other, exact=way.exact) for one, other in zip(expected, found, strict=True)]
        assert sum(swaps) <= MOST_SWAPS
        assert any(piece.top for pieces in found for piece in pieces)
        check_moves(itinerary.planned, moves, count)
        check_roads(way, all_)
        await all_.rest()
        for instance in all_.instances:
            instance.instance._loop.call(lambda core: core.check()).result(BOUND)
            status = instance.status()
            left = status.blocks_used, status.blocks_reserved, status.running, status.waiting
            assert left == (0, 0, 0, 0)
        return moves


def check_roads(way: Way, all_: Pools) -> None:
    """KV went by the transport that is asked for; by another one only after its connection was cut."""
    sent: Counter[str] = Counter()
    for instance in all_.instances:
        for transport, _, transfer in instance.instance._sender.transfers.listed():
            sent[transport] += transfer.bytes
    assert sent[way.transport] > 0, sent
    assert way.fault or sent.keys() == {way.transport}, sent


def check_moves(planned: Counter[str], moves: Sequence[tuple[Move, Moved]], count: int) -> None:
    """Nine of ten planned moves were made, some of each kind; those of requests that had ended, none."""
    assert planned.total() > count
    committed = Counter(move.kind for move, moved in moves if moved.committed)
    refused = [(move.kind, moved.outcome) for move, moved in moves if not moved.committed]
    assert set(committed) == {FIRST, EDGE, LAST, ANYWHERE}, refused
    assert committed.total() >= 0.9 * (planned.total() - planned[ENDED]), refused
    ends = [moved.outcome for move, moved in moves if move.kind == ENDED]
    assert ends and set(ends) == {NOT_THERE}


def check_places(moves: Sequence[tuple[Move, Moved]]) -> None:
    """Those for which the engine stood still changed hands with the very tokens that were there then."""
    stood = [
        (move, moved)
        for move, moved in moves
        if move.stood and moved.committed and move.request.sampling.n == 1
    ]
    assert {move.kind for move, _ in stood} == {FIRST, EDGE, LAST}
    for move, moved in stood:
        assert moved.tokens == len(move.request.prompt) + move.drawn, move.kind


@pytest.mark.parametrize("way", WAYS, ids=str)
def test_requests_that_move_give_the_streams_of_those_that_stay(
    way: Way, full: bool, tiny_model: Path, tmp_path: Path
) -> None:
    if way not in (WAYS[0], WAYS[-1]) and not full:
        pytest.skip("one of twelve combinations: run with --full")
    check_places(asyncio.run(move_about(way, 300 if full else 40, tiny_model, tmp_path)))


@pytest.mark.parametrize("way", PAIRED, ids=str)
def test_requests_that_move_by_roads_of_their_own_do_too(
    way: Way, full: bool, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if way.transport == "nixl" and not nixl_is_installed():
        pytest.skip("NIXL is not installed: pip install 'tandem-serving[nixl]'")
    if way != PAIRED[0] and not full:
        pytest.skip("one of six combinations: run with --full")
    monkeypatch.setattr("cluster.transports.NcclDevice", lambda index: DoubleDevice())
    monkeypatch.setattr("cluster.transports._index", lambda device: 0)
    check_places(asyncio.run(move_about(way, 300 if full else 40, tiny_model, tmp_path)))


STILL = [
    Piece(0, 0, 5, "a", -0.5, ((5, -0.5), (7, -1.25))),
    Piece(0, 1, 6, "b", -0.25, ((6, -0.25), (5, -2.5)), "length"),
]


@pytest.mark.parametrize(
    "change",
    [
        {"token": 7}, {"text": "c"}, {"finish": "stop"}, {"stop_reason": 6}, {"logprob": -0.26},
        {"top": ((6, -0.25), (5, -2.51))}, {"top": ((6, -0.25),)}, {"top": ()},
    ],
    ids=str,
)  # fmt: skip
@pytest.mark.parametrize("exact", [True, False])
def test_streams_that_differ_anywhere_are_told_apart(exact: bool, change: dict[str, Any]) -> None:
    assert check_same(STILL, STILL[::-1], exact=exact) == 0
    with pytest.raises(AssertionError):
        check_same(STILL, [STILL[0], replace(STILL[1], **change)], exact=exact)


def test_what_is_allowed_without_exact_is_not_with_it() -> None:
    swapped = [STILL[0], replace(STILL[1], top=((6, -0.25), (9, -2.50001)))]
    assert check_same(STILL, swapped, exact=False) == 1
    with pytest.raises(AssertionError):
        check_same(STILL, swapped, exact=True)


def test_mutant_a_block_that_is_copied_before_it_is_full_changes_streams(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mutate(monkeypatch, BlockList, "add", "some if frozen else full", "some")
    early = TransferConfig(max_moves=32, last_stage_blocks=1, pause=1e-6, live_stages=8)
    with pytest.raises(AssertionError, match="At index"):
        asyncio.run(move_about(WAYS[0], 16, tiny_model, tmp_path, early))


def test_mutant_moves_for_which_no_engine_stands_still_come_too_late_for_the_last_token(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mutate(monkeypatch, Itinerary, "_ask", "kind in STANDING and bool(awake)", "False")
    with pytest.raises(AssertionError, match=r"does not live here|it ended"):
        asyncio.run(move_about(WAYS[0], 24, tiny_model, tmp_path))
