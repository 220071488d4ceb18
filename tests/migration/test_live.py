"""A request that moves while it runs gives the tokens that it would have given where it was."""

from __future__ import annotations

import random

import pytest

from engine.request import Request, Sampling
from migration.blocks import BlockList
from migration.session import Bounds
from tests.engine.mutants import mutate
from tests.engine.toy import alone, prompt, request
from tests.migration.mesh import Itinerary, mesh

BOTH = pytest.mark.parametrize("forced", ["shm", "tcp"])
PACE = 0.004


@BOTH
def test_a_running_request_moves_and_goes_on_with_the_same_tokens(forced: str) -> None:
    with mesh(forced, pace=PACE) as all_:
        one = request("r", prompt(21), 60)
        all_.start("d0", one)
        all_.until(one, 5)
        moved = all_.moved(one, "d0", "d1")
        all_.served(one)
        assert moved.outcome == "committed"
        assert all_.home.pushers(one) == {"d0", "d1"}


def test_what_a_move_says_of_itself() -> None:
    with mesh(pace=PACE) as all_:
        one = request("r", prompt(21), 60)
        all_.start("d0", one)
        all_.until(one, 5)
        moved = all_.moved(one, "d0", "d1")
        assert (moved.request_id, moved.source, moved.destination) == ("r", "d0", "d1")
        assert (moved.reason, moved.committed, moved.stages) == ("a test", True, 1)
        assert moved.blocks == -(-(moved.tokens - 1) // 4)
        assert moved.bytes == moved.blocks * all_.nodes["d0"].engine.store.block_nbytes
        assert 0 < moved.downtime_seconds < moved.seconds


@BOTH
def test_streams_do_not_depend_on_how_often_a_request_moves(forced: str, full: bool) -> None:
    rng = random.Random(forced)
    bounds = Bounds(moves=64, last_blocks=4)
    count = 300 if full else 60
    with mesh(forced, pace=PACE, blocks=1024, bounds=bounds, max_sessions=64) as all_:
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
        assert len(outcomes) > count / 2
        assert committed >= 0.9 * itinerary.planned, [one.outcome for one in outcomes if not one.committed]


def shape(rng: random.Random, name: str) -> Request:
    """Every kind of sampling that leaves a trace in a request's state."""
    sampling = Sampling(
        max_tokens=rng.randrange(40, 80),
        temperature=rng.choice([0.0, 0.8]),
        seed=rng.randrange(9),
        n=rng.choice([1, 1, 1, 2, 4]),
        frequency_penalty=rng.choice([0.0, 0.5]),
        logprobs=rng.choice([None, 2]),
        stop_token_ids=rng.choice([(), (17,)]),
        min_tokens=rng.choice([0, 30]),
        ignore_eos=rng.choice([True, True, False]),
    )
    return Request(name, prompt(rng.choice([1, 4, 5, 16, 33, 70]), rng.randrange(4)), sampling)


def stop(rng: random.Random, one: Request) -> int:
    """After how many tokens to move: also at the first, where a block ends, and, seldom, at the last."""
    last = min(len(alone(one, choice)) for choice in range(one.sampling.n))
    edges = [tokens for tokens in range(1, last - 8) if (len(one.prompt) + tokens) % 4 == 0]
    somewhere = rng.randrange(1, max(2, last - 8))
    return last if rng.random() < 0.03 else rng.choice([1, rng.choice(edges or [1]), somewhere, somewhere])


def several_move() -> None:
    with mesh(pace=PACE, bounds=Bounds(last_blocks=1, pause=1e-9)) as all_:
        for number in range(8):
            one = request(f"r{number}", prompt(21 + number), 60)
            all_.start("d0", one)
            all_.until(one, 5)
            assert all_.moved(one, "d0", "d1").committed
            all_.served(one)


def test_several_move_one_after_another() -> None:
    several_move()


def test_a_block_that_is_copied_before_it_is_full_would_be_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    mutate(monkeypatch, BlockList, "add", "some if frozen else full", "some")
    with pytest.raises(AssertionError):
        several_move()
