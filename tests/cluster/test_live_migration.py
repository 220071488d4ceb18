"""Clients don't notice migration: streams of the embedded model that move are the same, piece by piece."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import replace

import pytest

from cluster.stream_order import Piece
from engine.request import Request, Sampling
from migration.moved import Moved
from model.grammar import of_schema
from tests.cluster.pools import Pools, pools
from tests.model.identity import answers

WORDS = of_schema({"type": "array", "items": {"type": "string", "maxLength": 9}, "minItems": 40})


class Moves:
    """Moves each request when its first choice has come to planned lengths, to instances drawn by lot."""

    def __init__(self, all_: Pools, rng: random.Random) -> None:
        self._pools = all_
        self._rng = rng
        self.planned = 0
        self.made: list[Future[Moved]] = []

    def follow(self, request: Request, length: int) -> Callable[[list[Piece]], None]:
        """`length` is what its choices come to; a move takes a few steps, so the last ones are left out."""
        most = max(1, length - 12)
        stops = sorted({self._rng.choice([1, self._rng.randrange(1, most + 1)]) for _ in range(3)})
        stops = stops[: self._rng.choice([0, 1, 2, 3])] if length > 12 else []
        self.planned += len(stops)
        last: list[Future[Moved]] = []
        tokens = 0

        def heard(pieces: list[Piece]) -> None:
            nonlocal tokens
            tokens += sum(piece.choice == 0 and piece.token is not None for piece in pieces)
            holder = self._holder(request)
            if not stops or tokens < stops[0] or holder is None or (last and not last[-1].done()):
                return
            stops.pop(0)
            others = [one for one in self._pools.instances if one.name != holder]
            to = self._rng.choice(others).instance._receiver.address
            last.append(self._pools.named(holder).instance.move(request.id, to, "a test"))
            self.made.append(last[-1])

        return heard

    def _holder(self, request: Request) -> str | None:
        """Who runs it; None while it is handed over."""
        run = self._pools.driver.runs.get(request.id)
        if run is None:
            return None
        first = self._pools.instances[0].name
        return run._order.owner or (first if first.startswith("decode") else None)

    def outcomes(self) -> list[Moved]:
        return [move.result(20) for move in self.made]


def requests(rng: random.Random, count: int, tokens: int) -> list[Request]:
    """Every way of drawing and ending that leaves a trace in what a request carries."""
    chosen = answers()
    made = []
    for number in range(count):
        sampling = Sampling(
            max_tokens=tokens,
            temperature=rng.choice([0.0, 0.8]),
            top_p=0.95,
            seed=number,
            n=(1, 1, 3)[number % 3],
            presence_penalty=(0.0, 0.7)[number % 2],
            repetition_penalty=(1.0, 1.1)[number % 2],
            logprobs=(None, 2)[number // 2 % 2],
            stop=((), (" the", "\n\n"))[number // 3 % 2],
            min_tokens=(0, 8)[number % 2],
            ignore_eos=number % 4 == 0,
        )
        if number % 5 == 4:
            sampling = replace(sampling, grammar=WORDS, min_tokens=0, ignore_eos=False)
        made.append(Request(f"{number}", chosen[number % len(chosen)].prompt, sampling))
    return made


Seen = list[tuple[int, int, int | None, str, str, str | int | None]]


def seen(pieces: Sequence[Piece]) -> Seen:
    return sorted(
        (one.choice, one.index, one.token or 0, one.text, one.finish, one.stop_reason) for one in pieces
    )


def last(pieces: Sequence[Piece]) -> dict[int, int]:
    """Tokens of each choice."""
    counts = Counter(one.choice for one in pieces if one.token is not None)
    return dict(counts)


def logprobs(pieces: Sequence[Piece]) -> list[float]:
    return [one.logprob for one in sorted(pieces, key=lambda one: (one.choice, one.index)) if one.logprob]


@pytest.mark.parametrize("transport", ["shm", "tcp"])
@pytest.mark.parametrize("prefill", [False, True], ids=["decode pool", "both pools"])
def test_streams_that_move_are_those_that_do_not(
    prefill: bool, transport: str, full: bool, tmp_path_factory: pytest.TempPathFactory
) -> None:
    if (prefill, transport) != (True, "tcp") and not full:
        pytest.skip("one of four combinations: run with --full")
    rng = random.Random(3)
    count, tokens = (40, 48) if full else (6, 24)
    every = requests(rng, count, tokens)
    lengths: list[int] = []

    async def ask(all_: Pools, name: str, moves: Moves | None) -> list[list[Piece]]:
        def one(request: Request) -> Request:
            return Request(f"{name}-{request.id}", request.prompt, request.sampling)

        asked = [one(request) for request in every]
        follow = [lambda pieces: None] * count if moves is None else list(map(moves.follow, asked, lengths))
        return list(await asyncio.gather(*map(all_.stream, asked, follow)))

    async def run() -> None:
        cache = tmp_path_factory.mktemp("cache")
        async with pools(
            cache, prefill=prefill, transport=transport, decodes=3 if full else 2, budget=64
        ) as all_:
            still = await ask(all_, "still", None)
            lengths.extend(min(last(pieces).values()) for pieces in still)
            moves = Moves(all_, random.Random(4))
            moved = await ask(all_, "moved", moves)
            for one, other in zip(still, moved, strict=True):
                assert seen(one) == seen(other)
                assert logprobs(one) == pytest.approx(logprobs(other), abs=1e-4)
            outcomes = moves.outcomes()
            committed = sum(one.committed for one in outcomes)
            assert len(outcomes) >= count / 2
            assert len(outcomes) >= moves.planned / 2  # the others ended while a move before was under way
            few = 0.9 if full else 0.5  # of a handful of short answers some end before they are moved
            assert committed >= few * len(outcomes), [one.outcome for one in outcomes]
            for instance in all_.instances:
                status = instance.status()
                assert (status.blocks_used, status.blocks_reserved) == (0, 0)

    asyncio.run(run())
