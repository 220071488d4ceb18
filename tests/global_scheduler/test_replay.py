"""A recorded scheduler, fed again, decides the same; another policy does not."""

from __future__ import annotations

import contextlib
from dataclasses import replace
from random import Random

from hypothesis import given, settings
from hypothesis import strategies as st

from engine.errors import TandemError
from engine.status import InstanceStatus
from global_scheduler.placement import PlacementSettings
from global_scheduler.replay import replay
from global_scheduler.scheduler import Scheduler, SchedulerSettings
from global_scheduler.tape import Input
from global_scheduler.view import ClusterView, Share, Summary

NAMES = [f"{role}-{number}" for role in ("prefill", "decode") for number in range(4)]


def status(name: str, rng: Random, arrivals: int) -> InstanceStatus:
    return InstanceStatus(
        name, name.partition("-")[0], running=rng.randrange(9), waiting=rng.randrange(4),
        waiting_tokens=rng.randrange(900), blocks_total=500,
        blocks_used=rng.randrange(300), arrivals=arrivals,
    )  # fmt: skip


def live(scheduler: Scheduler, seed: int, rounds: int) -> None:
    """A life of statuses, requests, cordons, moves and deaths."""
    rng, arrivals = Random(seed), dict.fromkeys(NAMES, 0)
    for number in range(rounds):
        now = number * 0.3
        name = rng.choice(NAMES)
        match rng.randrange(12):
            case 0:
                scheduler.cordon(name, on=rng.random() < 0.5)
            case 1:
                scheduler.forget(name)
            case 2 if name in scheduler.view:
                scheduler.send(f"r{rng.randrange(number + 1)}", {name: Share(0, 90)}, now)
            case 3 | 4 | 5 | 6:
                arrivals[name] += rng.randrange(3)
                scheduler.observe(status(name, rng, arrivals[name]), now - rng.random())
            case _:
                prefix = tuple(range(rng.randrange(5), 9))
                with contextlib.suppress(TandemError):
                    scheduler.place(Summary(f"r{number}", rng.randrange(1, 900), 20, prefix=prefix), now)


def made(ranking: str) -> Scheduler:
    return Scheduler(SchedulerSettings(PlacementSettings(ranking=ranking), queue_limit=40))


@given(st.integers(0, 10**6), st.sampled_from(["affinity", "freeness", "expert_choice", "round_robin"]))
@settings(max_examples=40, deadline=None)
def test_what_is_fed_again_is_decided_again(seed: int, ranking: str) -> None:
    tape: list[Input] = []
    scheduler = made(ranking)
    scheduler.tape = tape.append
    live(scheduler, seed, 150)
    agreement = replay(tape, made(ranking))
    assert agreement.decisions > 20 and agreement.disagreements == ()


def test_mutant_another_policy_does_not_agree() -> None:
    tape: list[Input] = []
    scheduler = made("affinity")
    scheduler.tape = tape.append
    live(scheduler, 1, 400)
    for other in ("least_kv", "round_robin"):
        assert replay(tape, made(other)).share < 0.9


def test_mutant_a_tape_without_what_was_sent_does_not_agree() -> None:
    tape: list[Input] = []
    scheduler = made("affinity")
    scheduler.tape = tape.append
    live(scheduler, 1, 400)
    kept = [one for number, one in enumerate(tape) if number % 7]
    assert replay(kept, made("affinity")).share < 1.0


@given(st.integers(0, 10**6))
@settings(max_examples=40, deadline=None)
def test_the_view_that_renews_what_changed_equals_one_that_is_made_anew(seed: int) -> None:
    """The oracle: a view that is told the same and makes every load anew at each look."""
    rng, arrivals = Random(seed), dict.fromkeys(NAMES, 0)
    watched, oracle = ClusterView(settle=3.0, stale=1.0), ClusterView(settle=3.0, stale=1.0)
    now = 0.0
    for number in range(120):
        now, name = now + rng.random(), rng.choice(NAMES)
        match rng.randrange(6):
            case 0:
                step = ("cordon", name, rng.random() < 0.5)
            case 1:
                step = ("forget", name, None)
            case 2 | 3 if name in watched:
                step = ("send", name, Share(rng.randrange(50), 64))
            case _:
                arrivals[name] += rng.randrange(2)
                step = ("observe", name, replace(status(name, rng, arrivals[name])))
        tell(watched, now, number, step)
        tell(oracle, now, number, step)
        oracle._changed.update(oracle._known)
        loads = watched.loads(now)
        assert loads == oracle.loads(now)
        for role in ("prefill", "decode"):
            usable = [one for one in loads if one.role == role and not one.cordoned and not one.stale]
            assert sorted(map(repr, watched.open(role, now))) == sorted(map(repr, usable))


def tell(view: ClusterView, now: float, number: int, step: tuple[str, str, object]) -> None:
    what, name, value = step
    if what == "cordon":
        view.cordon(name, on=bool(value))
    elif what == "forget":
        view.forget(name)
    elif what == "send":
        assert isinstance(value, Share)
        view.send(f"r{number % 20}", {name: value}, now)
    else:
        assert isinstance(value, InstanceStatus)
        view.observe(value, now)
