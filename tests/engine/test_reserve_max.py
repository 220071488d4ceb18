"""What is admitted by the longest that it may become is never preempted, wherever it comes from."""

from __future__ import annotations

import random

import pytest

from decode_pool.continuous_batching import ContinuousBatching
from engine.errors import Overloaded
from engine.reserve_max import Longest, ReserveMax
from engine.sequence import Epoch, Phase, Sequence
from tests.engine.mutants import mutate
from tests.engine.toy import Bench, prompt, request
from tests.engine.world import Pick, World

TOTAL, SIZE = 24, 16


def bench(total: int = TOTAL, max_length: int = 10_000) -> Bench:
    policy = ReserveMax(ContinuousBatching(64))
    return Bench(total=total, block_size=SIZE, policy=policy, max_sequences=64, max_length=max_length)


def preempted() -> int:
    """Of 18 requests that begin in one block and end in their second, in 24 blocks."""
    one = bench()
    for number in range(18):
        one.core.submit(request(f"r{number}", prompt(12, number), 8))
    one.drain()
    assert len({emitted.key for emitted in one.emitted}) == 18
    return one.core.status().preemptions


def test_blocks_are_reserved_and_not_tokens() -> None:
    assert preempted() == 0


def test_tokens_would_not_do(monkeypatch: pytest.MonkeyPatch) -> None:
    made = ReserveMax.__init__
    monkeypatch.setattr(ReserveMax, "__init__", lambda self, inner: made(self, inner, TOTAL * SIZE))
    assert preempted() > 0


def test_twelve_run_at_once_where_two_blocks_each_are_reserved() -> None:
    one = bench()
    for number in range(18):
        one.core.submit(request(f"r{number}", prompt(5, number), 20))
    for _ in range(3):
        one.step()
    assert (one.core.status().running, one.core.status().waiting) == (12, 6)


def test_no_more_is_reserved_than_the_context_has_room_for() -> None:
    """Else one that asks for more tokens than there can be would wait for ever."""
    one = bench(total=4, max_length=50)
    one.core.submit(request("r", prompt(5), 100_000))
    one.drain()
    assert len(one.output("r")) == 45


def test_one_that_is_handed_over_finds_room_at_its_longest_or_stays() -> None:
    one = bench(total=4)
    one.core.submit(request("here", prompt(5), 20))
    one.step()
    with pytest.raises(Overloaded, match=r"engine\.kv_memory"):
        one.core.reserve("s", request("long", prompt(10), 40), 10)
    coming = one.core.reserve("s", request("short", prompt(10), 20), 10)
    with pytest.raises(Overloaded, match="longest"):
        one.core.reserve("t", request("third", prompt(4), 4), 4)
    later = one.core.reserve("t", request("third", prompt(4), 4), 0)
    with pytest.raises(Overloaded, match="longest"):
        one.core.extend(later, 1)
    one.core.unreserve(coming)
    assert one.core.extend(later, 1)


def test_one_that_waits_to_be_handed_over_still_counts() -> None:
    """It would be decoded where it is if nobody took it."""
    one = bench(total=4)
    one.core.submit(request("first", prompt(5), 40), handoff=True)
    one.core.submit(request("second", prompt(5), 20))
    for _ in range(3):
        one.step()
    (first,) = one.core.sequences("first")
    (second,) = one.core.sequences("second")
    assert (first.phase, second.phase) == (Phase.PAUSED, Phase.WAITING)
    one.core.release("first")
    one.drain()
    assert len(one.output("second")) == 20


class Reserving(World):
    """Two instances that reserve: requests are handed over, moved, cancelled and recovered."""

    def __init__(self, pick: Pick) -> None:
        super().__init__(pick)
        self.benches = [
            Bench(
                total=14, budget=9, max_sequences=6, queue_limit=8, policy=ReserveMax(ContinuousBatching(9))
            )
            for _ in range(2)
        ]


def live(seed: int) -> tuple[int, int, int]:
    """How often something moved, was recovered and was preempted."""
    world = Reserving(random.Random(seed).choice)
    for _ in range(150):
        world.act()
    world.close()
    return world.moved, world.recovered, sum(one.core.status().preemptions for one in world.benches)


def test_nothing_is_preempted_whatever_moves_and_is_recovered(full: bool) -> None:
    lives = [live(seed) for seed in range(1000 if full else 25)]
    moved, recovered, preemptions = map(sum, zip(*lives, strict=True))
    assert moved and recovered
    assert preemptions == 0


@pytest.mark.parametrize(
    ("name", "old", "new"),
    [
        ("admits", "self._rule is None or", "True or"),
        ("_held", "if one.blocks:", "if one.blocks and one.phase.value != 'paused':"),
    ],
    ids=["handed over unasked", "not those that are paused"],
)
def test_who_reserves_otherwise_is_found(
    monkeypatch: pytest.MonkeyPatch, name: str, old: str, new: str
) -> None:
    mutate(monkeypatch, Longest, name, old, new)
    assert any(live(seed)[2] for seed in range(200))


def recovered() -> list[int]:
    """(running, waiting, preempted) with two choices that came with their tokens, and one other request.

    In eight blocks; the choices hold four each in the end, and six together as if they had parted here.
    """
    one, two = bench(total=8), request("r", prompt(32), 30, n=2)
    one.core.submit(two, choices=[Sequence(two, choice, [1] * 5) for choice in range(2)], epoch=Epoch(1))
    one.core.submit(request("other", prompt(3), 30))
    for _ in range(3):
        one.step()
    there = [len(one.core.running), len(one.core.queue)]
    one.drain()
    return [*there, one.core.status().preemptions]


def test_choices_that_were_recovered_share_no_prompt_and_count_it_each() -> None:
    assert recovered() == [2, 1, 0]


def test_to_count_their_prompt_once_would_not_do(monkeypatch: pytest.MonkeyPatch) -> None:
    mutate(monkeypatch, Longest, "_together", "prompts * shared", "shared")
    assert recovered()[2] > 0
