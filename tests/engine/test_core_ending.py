"""A request may be ended from outside at any moment, and a step may fail."""

from __future__ import annotations

import pytest

from engine.sequence import FinishReason, Phase
from tests.engine.toy import Bench, alone, prompt, request


def started(steps: int, total: int = 64) -> Bench:
    bench = Bench(budget=8, total=total)
    bench.core.submit(request("a", prompt(20), 9, n=2))
    bench.core.submit(request("b", prompt(6, 1), 9))
    for _ in range(steps):
        bench.step()
    return bench


@pytest.mark.parametrize("steps", [0, 1, 2, 3, 4, 6])
def test_a_cancelled_request_is_gone_at_once_and_others_do_not_notice(steps: int) -> None:
    bench = started(steps)
    said = len(bench.emitted)
    assert bench.core.cancel("a")
    bench.core.check()
    assert bench.core.sequences("a") == []
    bench.drain()
    assert bench.output("b") == alone(request("b", prompt(6, 1), 9))
    assert all(one.key.request_id == "b" for one in bench.emitted[said:])
    assert bench.core.pool.used == 0


def test_cancelling_who_is_not_here_does_nothing() -> None:
    assert not Bench().core.cancel("nobody")


def test_a_paused_request_can_be_cancelled() -> None:
    bench = started(5)
    bench.core.freeze("a")
    assert bench.core.cancel("a")
    bench.drain()
    assert bench.core.pool.used == 0


def test_the_result_of_a_request_cancelled_during_its_step_is_dropped() -> None:
    bench = started(5)
    plan = bench.core.plan(0.0)
    assert plan is not None
    bench.core.cancel("a")
    outcome = bench.core.commit(plan, bench.runner.run(plan), 0.0)
    assert {one.key.request_id for one in outcome.emitted} == {"b"}


def test_blocks_freed_during_a_step_are_given_to_nobody_before_its_end() -> None:
    bench = started(5, total=20)
    pool = bench.core.pool
    held = {block for sequence in bench.core.sequences("a") for block in sequence.blocks}
    plan = bench.core.plan(0.0)
    assert plan is not None
    bench.core.cancel("a")
    reservation = bench.core.reserve("s", request("c", prompt(9, 2)), (pool.available - 1) * 4)
    assert not held & set(reservation.blocks)
    bench.core.commit(plan, bench.runner.run(plan), 0.0)
    assert pool.available >= len(held)
    bench.core.check()


def test_a_request_cancelled_and_sent_again_during_its_step_starts_anew() -> None:
    bench, one = Bench(budget=8), request("a", prompt(12), 5)
    bench.core.submit(one)
    bench.step()
    plan = bench.core.plan(0.0)
    assert plan is not None
    bench.core.cancel("a")
    bench.core.submit(one)
    outcome = bench.core.commit(plan, bench.runner.run(plan), 0.0)
    assert outcome.emitted == ()
    bench.drain()
    assert bench.output("a") == alone(one)


def test_a_stop_string_ends_one_choice_without_an_event() -> None:
    bench = started(5)
    length = len(bench.output("a", 1))
    assert bench.core.finish("a", 1, length)
    bench.drain()
    assert bench.finish("a", 1) is None
    assert len(bench.output("a", 1)) == length
    assert bench.output("a", 0) == alone(request("a", prompt(20), 9, n=2), 0)


def test_a_stop_string_of_an_attempt_that_had_come_further_ends_nothing() -> None:
    bench = started(5)
    assert not bench.core.finish("a", 1, 8)
    assert not bench.core.finish("nobody", 0, 1)


def test_who_leaves_is_told_to_movements() -> None:
    bench = started(5)
    bench.core.cancel("a")
    outcome = bench.core.settle()
    assert outcome is not None
    assert outcome.dropped == ("a",)
    assert bench.core.settle() is None


def test_a_step_that_cannot_be_computed_fails_its_requests_and_no_others() -> None:
    bench = Bench(budget=8)
    bench.core.submit(request("a", prompt(20), 9, n=2))
    bench.core.submit(request("b", prompt(6, 1), 9))
    plan = bench.core.plan(0.0)
    assert plan is not None
    outcome = bench.core.fail(plan, 1.0)
    assert [(e.key, e.drawn, e.finish) for e in outcome.emitted] == [
        (("a", 0), None, FinishReason.FAILED),
        (("a", 1), None, FinishReason.FAILED),
    ]
    bench.drain()
    assert bench.output("b") == alone(request("b", prompt(6, 1), 9))
    assert bench.core.pool.used == 0


def test_a_frozen_sequence_does_not_change_even_when_its_step_ends() -> None:
    bench = started(5)
    plan = bench.core.plan(0.0)
    assert plan is not None
    (first, second) = bench.core.freeze("a")
    before = (list(first.output), first.computed, list(second.output), second.computed)
    bench.core.commit(plan, bench.runner.run(plan), 0.0)
    assert (list(first.output), first.computed, list(second.output), second.computed) == before
    assert first.phase is Phase.PAUSED
    bench.core.resume("a")
    bench.drain()
    assert [bench.output("a", c) for c in (0, 1)] == [
        alone(request("a", prompt(20), 9, n=2), c) for c in (0, 1)
    ]
