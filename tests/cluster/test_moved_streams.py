"""Three hundred requests of every kind, each moved up to three times through whole instances: what their
clients get is what they get of requests that stay."""

from __future__ import annotations

import asyncio
import random
import threading
from collections.abc import Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pytest

from cluster.config import TransferConfig
from cluster.stream_order import Piece
from engine.outcome import StepOutcome
from engine.request import Request, Sampling
from migration.blocks import BlockList
from migration.moved import Moved
from tests.cluster.pools import PooledInstance, Pools, pools
from tests.engine.mutants import mutate

BOUND = 60.0
SLOW = 0.02
"""Seconds of a step while somebody moves, so that requests don't end before their moves do."""

ENOUGH = 6
"""Tokens that must be left for a move, which takes a few steps, to be sure of its end."""

TOGETHER = 24
"""Requests at a time."""

DAMAGED = "delay=1ms damage=0.03 cut=0.001"


@dataclass(frozen=True)
class Way:
    """How requests travel, and the numbers that they are made of."""

    transport: str
    dtype: str
    fault: str = ""

    @property
    def exact(self) -> bool:
        return self.dtype == "bfloat16"


WAYS = [
    Way(transport, dtype, fault)
    for dtype in ("float32", "bfloat16")
    for transport, fault in (("shm", ""), ("tcp", ""), ("shm", DAMAGED), ("tcp", DAMAGED))
]


class Itinerary:
    """Moves requests, in the very step that draws a planned token, to instances drawn by lot."""

    def __init__(self, all_: Pools, rng: random.Random) -> None:
        self._pools = all_
        self._rng = rng
        self._door = threading.Lock()
        self._stops: dict[str, list[int]] = {}
        self._moves: dict[str, list[Future[Moved]]] = {}
        self.planned = 0
        for one in all_.instances:
            one.instance._loop.observe(partial(self._heard, one))
            one.runner.dawdle = self._dawdle

    def plan(self, request: Request, length: int) -> None:
        """`length`: tokens of its shortest choice."""
        size = self._pools.decode.runner.kv.layout.block_size
        last = max(1, length - ENOUGH)
        edges = [count for count in range(1, last) if (len(request.prompt) + count) % size == 0]

        def stop() -> int:
            if self._rng.random() < 0.03:
                return self._rng.choice([length - 1, length]) or 1
            return self._rng.choice([1, self._rng.choice(edges or [1]), self._rng.randrange(1, last + 1)])

        stops = sorted({stop() for _ in range(self._rng.choice([0, 1, 2, 3]))})
        self._stops[request.id] = stops
        self.planned += len(stops)

    def _heard(self, here: PooledInstance, outcome: StepOutcome) -> None:
        """In the engine's thread of an instance, after a step."""
        for one in outcome.emitted:
            name, stops = one.key.request_id, self._stops.get(one.key.request_id)
            if one.key.choice or not stops or one.index + 1 < stops[0]:
                continue
            with self._door:
                moves = self._moves.setdefault(name, [])
                if moves and not moves[-1].done():
                    continue
                stops.pop(0)
                others = [other for other in self._pools.instances if other is not here]
                to = self._rng.choice(others).instance._receiver.address
                moves.append(here.instance.move(name, to, "a test"))

    def _dawdle(self) -> None:
        with self._door:
            under_way = [moves[-1] for moves in self._moves.values() if moves and not moves[-1].done()]
        if under_way:
            wait(under_way, SLOW, FIRST_COMPLETED)

    def outcomes(self) -> list[Moved]:
        return [move.result(BOUND) for moves in self._moves.values() for move in moves]


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
        made.append(Request(f"{number}", prompt, sampling))
    return made


Stream = list[tuple[int, int, int | None, str, str, str | int | None]]


def seen(pieces: Sequence[Piece]) -> Stream:
    """All that a client gets but log-probabilities."""
    return sorted(
        (one.choice, one.index, one.token or 0, one.text, one.finish, one.stop_reason) for one in pieces
    )


def logprobs(pieces: Sequence[Piece]) -> list[float]:
    return [one.logprob for one in sorted(pieces, key=lambda one: (one.choice, one.index)) if one.logprob]


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
) -> None:
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
        outcomes = itinerary.outcomes()
        for one, other in zip(expected, found, strict=True):
            assert seen(one) == seen(other)
            assert logprobs(one) == (
                logprobs(other) if way.exact else pytest.approx(logprobs(other), abs=1e-4)
            )
        committed = sum(one.committed for one in outcomes)
        assert committed >= 0.9 * itinerary.planned, [one.outcome for one in outcomes if not one.committed]
        assert itinerary.planned > count
        for instance in all_.instances:
            instance.instance._loop.call(lambda core: core.check()).result(BOUND)
            status = instance.status()
            assert (status.blocks_used, status.blocks_reserved, status.running, status.waiting) == (
                0,
                0,
                0,
                0,
            )


@pytest.mark.parametrize(
    "way", WAYS, ids=lambda way: f"{way.transport}{'-damaged' * bool(way.fault)}-{way.dtype}"
)
def test_requests_that_move_give_the_streams_of_those_that_stay(
    way: Way, full: bool, tiny_model: Path, tmp_path: Path
) -> None:
    if way not in (WAYS[0], WAYS[-1]) and not full:
        pytest.skip("one of eight combinations: run with --full")
    asyncio.run(move_about(way, 300 if full else 24, tiny_model, tmp_path))


def test_mutant_a_block_that_is_copied_before_it_is_full_changes_streams(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mutate(monkeypatch, BlockList, "add", "some if frozen else full", "some")
    early = TransferConfig(max_moves=32, last_stage_blocks=1, pause=1e-6, live_stages=8)
    with pytest.raises(AssertionError, match="At index"):
        asyncio.run(move_about(WAYS[0], 16, tiny_model, tmp_path, early))
