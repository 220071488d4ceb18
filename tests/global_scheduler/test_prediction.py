"""Predictions: what a request would wait and slow down, both ways, and what is decided by it."""

from __future__ import annotations

import pytest

from engine.cost_model import Batch, LinearCost
from engine.errors import TooLate
from engine.request import SLO
from engine.status import InstanceStatus
from global_scheduler.placement import PlacementSettings
from global_scheduler.prediction import Forecast, Predictor
from global_scheduler.scheduler import Scheduler, SchedulerSettings
from global_scheduler.view import Load, Summary

COST = LinearCost(base=0.002, floor=0.01, per_token=1e-4, per_context=1e-7)
BUDGET = 256


def load(role: str, **numbers: int) -> Load:
    given = {"blocks": 1000, "block_size": 16, "demand": 0, "queued_tokens": 0, "queued": 0, "requests": 0}
    return Load(instance=f"{role}-0", role=role, **(given | numbers))  # type: ignore[arg-type]


def by_hand(chunks: list[tuple[int, int]], decodes: int = 0, context: int = 0) -> float:
    return sum(COST.seconds(Batch((chunk,), decodes, context)) for chunk in chunks)


@pytest.mark.parametrize("prompt", [1, 255, 256, 257, 700])
def test_apart_it_waits_for_the_queue_and_its_own_chunks(prompt: int) -> None:
    waiting = 512
    first = Predictor(COST, BUDGET).apart(
        load("prefill", queued_tokens=waiting),
        load("decode", running=3, held=30),
        compute=prompt,
        hold=prompt,
        output=100,
    )
    tokens = waiting + prompt
    chunks = [(min(BUDGET, tokens - at), at) for at in range(0, tokens, BUDGET)]
    assert first.ttft == pytest.approx(by_hand(chunks), rel=0.01)
    assert first.tpot == COST.seconds(Batch((), 4, 30 * 16 + prompt))


def test_a_prompt_that_is_being_read_is_predicted_like_one_that_waits() -> None:
    """The reason has both predictions in it."""
    reasons = []
    for busy in ({}, {"waiting_tokens": 9000}, {"prefill_tokens": 9000}):
        made = scheduler(SLO(0.5, 0.05))
        made.observe(status("prefill-0", **busy), 0.0)
        made.observe(status("decode-0"), 0.0)
        reasons.append(made.place(Summary("r", 400, 100), 0.0).reason)
    idle, waits, reads = reasons
    assert reads == waits != idle


def test_the_handoff_is_spread_over_the_answer() -> None:
    args = load("prefill"), load("decode")
    plain = Predictor(COST, BUDGET).apart(*args, compute=100, hold=100, output=11)
    slow = Predictor(COST, BUDGET, handoff=0.5).apart(*args, compute=100, hold=100, output=11)
    assert slow.tpot - plain.tpot == pytest.approx(0.05)


def test_alone_where_it_decodes_it_disturbs_nobody() -> None:
    alone = Predictor(COST, BUDGET).local(load("decode"), compute=300, hold=300)
    assert alone.tpot == COST.seconds(Batch((), 1, 300))
    shared = Predictor(COST, BUDGET).local(load("decode", running=5, held=50), compute=300, hold=300)
    assert shared.tpot == COST.seconds(Batch(((251, 0),), 5, 800)) > alone.tpot


def scheduler(slo: SLO, *, early: bool = False) -> Scheduler:
    settings = PlacementSettings(ranking="affinity", predictor=Predictor(COST, BUDGET), slo=slo)
    return Scheduler(SchedulerSettings(settings, early_rejection=early))


def status(name: str, **numbers: int) -> InstanceStatus:
    return InstanceStatus(name, name.partition("-")[0], blocks_total=2000, **numbers)


def placed(made: Scheduler, *, local: bool, prompt: int = 400) -> str:
    placement = made.place(Summary("r", prompt, 100), 0.0)
    assert placement.local is local, placement.reason
    assert placement.forecast is not None
    return placement.reason


def test_an_idle_decode_instance_prefills_when_the_prefill_queue_is_long() -> None:
    made = scheduler(SLO(0.5, 0.05))
    made.observe(status("prefill-0", waiting=9, waiting_tokens=9000), 0.0)
    made.observe(status("decode-0"), 0.0)
    assert "prefills it itself" in placed(made, local=True)


def test_a_busy_decode_instance_is_not_disturbed_beyond_its_objective() -> None:
    for tpot, local in ((0.02, False), (0.2, True)):
        made = scheduler(SLO(0.5, tpot))
        made.observe(status("prefill-0", waiting=1, waiting_tokens=1000), 0.0)
        made.observe(status("decode-0", running=20, blocks_used=200), 0.0)
        placed(made, local=local)


def test_a_request_may_bring_its_own_objectives() -> None:
    made = scheduler(SLO(0.5, 0.2))
    made.observe(status("prefill-0", waiting=1, waiting_tokens=1000), 0.0)
    made.observe(status("decode-0", running=20, blocks_used=200), 0.0)
    strict = made.place(Summary("r", 400, 100, slo=SLO(0.5, 0.02)), 0.0)
    assert not strict.local
    assert made.place(Summary("s", 400, 100), 0.0).local


def overloaded(priority: int = 0, attempt: int = 0, waiting: int = 9000) -> Scheduler:
    made = scheduler(SLO(0.5, 0.05), early=True)
    made.observe(status("prefill-0", waiting=9, waiting_tokens=waiting), 0.0)
    made.observe(status("decode-0", running=50, blocks_used=400, waiting=9, waiting_tokens=waiting), 0.0)
    made.place(Summary("r", 400, 100, priority=priority, attempt=attempt), 0.0)
    return made


def test_who_would_come_too_late_is_refused_and_told_when_to_come_again() -> None:
    with pytest.raises(TooLate, match=r"0\.50 s are allowed") as caught:
        overloaded(waiting=30_000)
    assert caught.value.status == 503
    # 30,400 tokens at 1e-4 s, and 119 steps of 2 ms: 2.8 s late.
    assert caught.value.retry_after == 3


def test_high_priorities_and_recovered_requests_are_let_in_all_the_same() -> None:
    overloaded(priority=1)
    overloaded(attempt=1)


def test_low_priorities_give_way_first() -> None:
    overloaded(waiting=2500)
    with pytest.raises(TooLate, match=r"0\.25 s are allowed"):
        overloaded(priority=-1, waiting=2500)


def test_what_is_refused_is_not_counted_as_sent() -> None:
    made = scheduler(SLO(0.5, 0.05), early=True)
    made.observe(status("prefill-0", waiting=9, waiting_tokens=9000), 0.0)
    made.observe(status("decode-0", running=50, blocks_used=400, waiting=9, waiting_tokens=9000), 0.0)
    before = made.view.loads(0.0)
    with pytest.raises(TooLate):
        made.place(Summary("r", 400, 100), 0.0)
    assert made.view.loads(0.0) == before


def test_without_objectives_nothing_is_strained() -> None:
    assert Forecast(99.0, 9.0).strain(SLO()) == 0.0
    assert Forecast(2.0, 0.1).strain(SLO(1.0, 0.4)) == 2.0
    assert Forecast(0.5, 0.1).strain(SLO(1.0, 0.05)) == 2.0
