"""Rescheduling: who gives, who takes, which request goes, and that it ends."""

from __future__ import annotations

from dataclasses import replace
from random import Random

import pytest

from global_scheduler.freeness import room
from global_scheduler.rescheduling import Movable, Rescheduler, ReschedulingSettings, choose
from global_scheduler.view import Load

SETTINGS = ReschedulingSettings(low=3.0, high=6.0, rest=2.0)


def load(name: str, *, held: int, running: int, head: int = 0, urgent: int = 0, **more: object) -> Load:
    whole = Load(
        instance=name,
        role="decode",
        blocks=100,
        block_size=16,
        demand=held + head,
        queued_tokens=head * 16,
        queued=1 if head else 0,
        requests=running,
        held=held,
        head=head,
        running=running,
        urgent=urgent,
    )
    return replace(whole, **more)  # type: ignore[arg-type]


def pairs(*loads: Load, leaving: dict[str, str] | None = None, now: float = 0.0) -> list[tuple[str, str]]:
    return [(m.source, m.destination) for m in Rescheduler(SETTINGS).decide(loads, now, leaving)]


@pytest.mark.parametrize(
    ("one", "expected"),
    [
        (load("i", held=0, running=0), 100.0),
        (load("i", held=60, running=4), 10.0),
        (load("i", held=60, running=4, head=20), 4.0),
        (load("i", held=60, running=4, urgent=1), 5.0),
        (load("i", held=60, running=4, head=30, urgent=3), -2.0),
    ],
    ids=["empty", "running", "head of line", "urgent", "all"],
)
def test_virtual_usage(one: Load, expected: float) -> None:
    """Running counts as it is, the head of the queue with its demand, urgent requests keep headroom once."""
    assert room(one, headroom=20) == expected


def test_the_most_crowded_gives_to_the_freest() -> None:
    crowded, full = load("crowded", held=95, running=5), load("full", held=99, running=10)
    free, freer = load("free", held=40, running=5), load("freer", held=10, running=2)
    assert pairs(crowded, free, full, freer) == [("full", "freer"), ("crowded", "free")]


def test_between_the_thresholds_nobody_moves() -> None:
    assert pairs(load("a", held=80, running=5), load("b", held=55, running=10)) == []


def test_a_large_request_at_the_head_of_a_queue_makes_room_for_itself() -> None:
    assert pairs(load("a", held=60, running=4), load("b", held=10, running=1)) == []
    assert pairs(load("a", held=60, running=4, head=70), load("b", held=10, running=1)) == [("a", "b")]


def test_pools_are_not_mixed() -> None:
    assert pairs(load("a", held=99, running=9), load("p", held=0, running=0, role="prefill")) == []


@pytest.mark.parametrize("state", ["cordoned", "stale"])
def test_who_is_cordoned_or_silent_takes_nothing(state: str) -> None:
    assert pairs(load("a", held=99, running=9), load("b", held=0, running=0, **{state: True})) == []


def test_one_request_is_left_alone_where_nobody_waits() -> None:
    assert pairs(load("a", held=99, running=1), load("b", held=0, running=0)) == []


def test_an_instance_that_drains_gives_whatever_its_freeness() -> None:
    moves = Rescheduler(SETTINGS).decide(
        [load("a", held=20, running=1), load("b", held=0, running=0), load("c", held=50, running=5)],
        0.0,
        {"a": "draining"},
    )
    assert [(m.source, m.destination) for m in moves] == [("a", "b")]
    assert "a is draining" in moves[0].reason and moves[0].largest == 1600


def test_several_leave_a_failing_instance_at_once() -> None:
    there = [load(name, held=0, running=0) for name in "bcdef"]
    assert len(pairs(load("a", held=50, running=9, stale=True), *there, leaving={"a": "failing"})) == 4


def test_low_priority_goes_first_then_the_shortest() -> None:
    running = [Movable("long", 900), Movable("short", 100), Movable("urgent", 10, priority=1)]
    assert choose(running, SETTINGS, 0.0, largest=1000, leaving=False) == "short"
    assert choose(running[2:], SETTINGS, 0.0, largest=1000, leaving=False) == "urgent"
    assert choose(running, SETTINGS, 0.0, largest=50, leaving=False) == "urgent"
    assert choose(running, SETTINGS, 0.0, largest=5, leaving=False) is None


def test_a_request_that_has_just_come_stays_unless_its_instance_leaves() -> None:
    fresh = [Movable("r", 10, since=9.0)]
    assert choose(fresh, SETTINGS, 10.0, largest=99, leaving=False) is None
    assert choose(fresh, SETTINGS, 11.0, largest=99, leaving=False) == "r"
    assert choose(fresh, SETTINGS, 10.0, largest=99, leaving=True) == "r"


def test_who_took_does_not_give_back_at_once() -> None:
    rescheduler = Rescheduler(SETTINGS)
    a, b = load("a", held=99, running=9), load("b", held=0, running=0)
    assert [m.destination for m in rescheduler.decide([a, b], 0.0)] == ["b"]
    turned = [load("a", held=0, running=0), load("b", held=99, running=9)]
    assert rescheduler.decide(turned, 1.0) == []
    assert [m.source for m in rescheduler.decide(turned, 2.1)] == ["b"]


@pytest.mark.parametrize("blocks", [(7, 8), (9, 8), (7, 8, 9), (9, 8, 9, 8)])
def test_who_takes_does_not_give_in_the_same_round(blocks: tuple[int, ...]) -> None:
    """Even where thresholds overlap, so that each of them would be both; one that has a single request gives
    none, and takes where nobody freer is left."""
    rescheduler = Rescheduler(ReschedulingSettings(low=10.0, high=6.0))
    loads = [load(f"d-{i}", held=100 - 5 * each, running=5) for i, each in enumerate(blocks)]
    moves = rescheduler.decide([*loads, load("single", held=93, running=1)], 0.0)
    assert moves
    assert not {move.source for move in moves} & {move.destination for move in moves}


@pytest.mark.parametrize("seed", range(5))
def test_moving_by_the_rules_comes_to_rest(seed: int) -> None:
    """Unchanging requests, any start: after some rounds nobody moves any more, and nobody went round."""
    rng = Random(seed)
    settings = ReschedulingSettings(low=3.0, high=6.0, rest=0.0)
    places = {name: [rng.randint(1, 20) for _ in range(rng.randint(0, 12))] for name in "abcdef"}
    rescheduler = Rescheduler(settings)
    for round_number in range(200):
        loads = [load(n, held=min(100, sum(held)), running=len(held)) for n, held in places.items()]
        moves = rescheduler.decide(loads, float(round_number))
        if not moves:
            break
        for move in moves:
            smallest = min(places[move.source])
            places[move.source].remove(smallest)
            places[move.destination].append(smallest)
    assert not moves
