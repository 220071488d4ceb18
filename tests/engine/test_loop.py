"""The loop's thread steps while there is work, takes calls between two steps, and ends cleanly."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator
from collections.abc import Sequence as SequenceOf
from concurrent.futures import Future

import pytest

from engine.core import EngineCore
from engine.errors import ContextLengthExceeded, Draining, TandemError
from engine.loop import EngineLoop
from engine.outcome import Emitted, StepOutcome
from engine.plan import StepPlan, StepResult
from engine.sequence import FinishReason
from tests.engine.toy import Bench, ToyRunner, alone, prompt, request

SOON = 20.0


class Ticks:
    """A clock that counts how often it is read."""

    def __init__(self) -> None:
        self.read = 0

    def now(self) -> float:
        self.read += 1
        return float(self.read)


class Heard:
    """A sink that collects, and wakes who waits for the end of a number of choices."""

    def __init__(self) -> None:
        self.emitted: list[Emitted] = []
        self._news = threading.Condition()

    def push(self, emitted: SequenceOf[Emitted]) -> None:
        with self._news:
            self.emitted.extend(emitted)
            self._news.notify_all()

    def wait(self, done: Callable[[list[Emitted]], bool]) -> list[Emitted]:
        with self._news:
            assert self._news.wait_for(lambda: done(self.emitted), SOON)
            return list(self.emitted)

    def ends(self, count: int) -> list[Emitted]:
        return self.wait(lambda emitted: sum(one.finish is not None for one in emitted) == count)


class Gate:
    """A runner that stops before each step until it is let through, or raises what it was given."""

    def __init__(self, inner: ToyRunner) -> None:
        self.inner = inner
        self.error: BaseException | None = None
        self.open = threading.Event()
        self.open.set()
        self.entered = threading.Event()

    def run(self, plan: StepPlan) -> StepResult:
        self.entered.set()
        assert self.open.wait(SOON)
        if self.error is not None:
            raise self.error
        return self.inner.run(plan)


class Rig:
    def __init__(self) -> None:
        bench = Bench(budget=8)
        self.core, self.heard, self.clock = bench.core, Heard(), Ticks()
        self.runner = Gate(bench.runner)
        self.loop = EngineLoop(self.core, self.runner, self.heard, self.clock, name="test")

    def submit(self, name: str, length: int = 5, max_tokens: int = 4) -> Future[None]:
        one = request(name, prompt(length), max_tokens)
        return self.loop.call(lambda core: core.submit(one))


@pytest.fixture
def rig() -> Iterator[Rig]:
    rig = Rig()
    rig.loop.start()
    yield rig
    rig.runner.open.set()
    rig.loop.stop(SOON)
    assert rig.loop.ended.done()


def test_requests_that_enter_by_call_are_served(rig: Rig) -> None:
    for name in "abc":
        rig.submit(name).result(SOON)
    emitted = rig.heard.ends(3)
    for name in "abc":
        tokens = [one.drawn.token for one in emitted if one.key.request_id == name and one.drawn]
        assert tokens == alone(request(name, prompt(5), 4))


def test_an_idle_loop_does_not_turn(rig: Rig) -> None:
    rig.submit("a").result(SOON)
    rig.heard.ends(1)
    rig.loop.call(lambda core: None).result(SOON)
    rig.loop.call(lambda core: None).result(SOON)
    before = rig.clock.read
    assert not rig.loop.ended.done()
    assert rig.loop.call(lambda core: rig.clock.read).result(SOON) <= before + 1


def test_a_call_gives_its_result_and_its_error_to_its_caller(rig: Rig) -> None:
    assert rig.loop.call(lambda core: core.pool.total).result(SOON) == 64
    with pytest.raises(ContextLengthExceeded):
        rig.submit("a", 5, 10_000).result(SOON)
    assert rig.loop.failed is None


def test_a_call_runs_between_two_steps(rig: Rig) -> None:
    rig.runner.open.clear()
    rig.submit("a").result(SOON)
    assert rig.runner.entered.wait(SOON)
    cancelled = rig.loop.call(lambda core: core.cancel("a"))
    assert not cancelled.done()
    rig.runner.open.set()
    assert cancelled.result(SOON)
    assert len(rig.heard.emitted) == 1


def test_a_cancelled_call_is_not_run(rig: Rig) -> None:
    rig.runner.open.clear()
    rig.submit("a").result(SOON)
    assert rig.runner.entered.wait(SOON)
    ran: list[bool] = []
    assert rig.loop.call(lambda core: ran.append(True)).cancel()
    rig.runner.open.set()
    rig.loop.call(lambda core: None).result(SOON)
    assert ran == []


def test_observers_see_every_outcome_in_the_loops_thread(rig: Rig) -> None:
    seen: list[tuple[StepOutcome, str]] = []
    rig.loop.observe(lambda outcome: seen.append((outcome, threading.current_thread().name)))
    rig.submit("a").result(SOON)
    rig.heard.ends(1)
    rig.loop.call(lambda core: None).result(SOON)
    assert sum(len(outcome.emitted) for outcome, _ in seen) == 4
    assert {name for _, name in seen} == {"test"}


def test_a_step_is_told_of_before_it_has_been_computed(rig: Rig) -> None:
    order: list[tuple[str, int]] = []
    told = threading.Event()

    def foresee(plan: StepPlan) -> None:
        order.append(("begins", plan.works[0].start))
        told.set()

    rig.runner.open.clear()
    rig.loop.foresee(foresee)
    rig.loop.observe(lambda outcome: order.append(("over", len(outcome.emitted))))
    rig.submit("a")
    assert told.wait(SOON)
    assert order == [("begins", 0)], "the runner lets nothing through yet"
    rig.runner.open.set()
    rig.heard.ends(1)
    rig.loop.call(lambda core: None).result(SOON)
    assert [what for what, _ in order] == ["begins", "over"] * 4


def test_observers_hear_of_a_cancellation_although_there_is_no_step(rig: Rig) -> None:
    heard = threading.Event()
    rig.loop.observe(lambda outcome: heard.set() if outcome.dropped == ("a",) else None)
    one = request("a", prompt(5), 4)

    def come_and_go(core: EngineCore) -> None:
        core.submit(one)
        core.cancel("a")

    rig.loop.call(come_and_go)
    assert heard.wait(SOON)


def test_a_step_that_cannot_be_computed_ends_its_requests_and_the_loop_lives_on(
    rig: Rig, caplog: pytest.LogCaptureFixture
) -> None:
    rig.runner.error = ValueError("no such token")
    with caplog.at_level(logging.CRITICAL):
        rig.submit("a").result(SOON)
        emitted = rig.heard.ends(1)
    assert (emitted[0].drawn, emitted[0].finish) == (None, FinishReason.FAILED)
    rig.runner.error = None
    rig.submit("b").result(SOON)
    rig.heard.ends(2)
    assert rig.loop.failed is None


def test_any_other_error_ends_the_loop_and_every_call(caplog: pytest.LogCaptureFixture) -> None:
    rig = Rig()
    rig.loop.start()
    rig.runner.open.clear()
    error = rig.runner.error = MemoryError("out of it")
    with caplog.at_level(logging.CRITICAL):
        rig.submit("a").result(SOON)
        assert rig.runner.entered.wait(SOON)
        waiting = rig.loop.call(lambda core: None)
        rig.runner.open.set()
        assert rig.loop.ended.exception(SOON) is error
    assert rig.loop.failed is error
    for call in (waiting, rig.loop.call(lambda core: None)):
        with pytest.raises(TandemError, match="out of it"):
            call.result(SOON)


def test_a_stopped_loop_refuses_calls() -> None:
    rig = Rig()
    rig.loop.start()
    rig.loop.stop(SOON)
    assert rig.loop.ended.result(SOON) is None
    assert rig.loop.failed is None
    with pytest.raises(Draining):
        rig.loop.call(lambda core: None).result(SOON)


def test_stopping_is_bounded_even_when_a_step_hangs(caplog: pytest.LogCaptureFixture) -> None:
    rig = Rig()
    rig.loop.start()
    rig.runner.open.clear()
    rig.submit("a").result(SOON)
    assert rig.runner.entered.wait(SOON)
    waiting = rig.loop.call(lambda core: None)
    with caplog.at_level(logging.CRITICAL):
        rig.loop.stop(0.01)
    assert isinstance(waiting.exception(SOON), Draining)
    rig.runner.open.set()
    assert rig.loop.ended.result(SOON) is None


def test_a_loop_may_be_stopped_from_its_own_thread() -> None:
    rig = Rig()
    rig.loop.start()
    rig.loop.call(lambda core: rig.loop.stop(SOON)).result(SOON)
    assert rig.loop.ended.result(SOON) is None


def test_calls_from_many_threads_all_run(rig: Rig) -> None:
    total = [0]

    def add(core: EngineCore) -> None:
        total[0] += 1

    def caller() -> None:
        for _ in range(200):
            rig.loop.call(add)

    callers = [threading.Thread(target=caller) for _ in range(8)]
    for thread in callers:
        thread.start()
    for thread in callers:
        thread.join(SOON)
    rig.loop.call(lambda core: None).result(SOON)
    assert total == [1600]
