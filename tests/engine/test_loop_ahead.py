"""A loop over a runner that computes by itself: the next step is launched before the present one is over."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cache
from typing import Any

import pytest

from engine.commits import Commits
from engine.core import EngineCore, Launcher
from engine.loop import EngineLoop
from engine.plan import StepPlan, StepResult
from engine.sequence import FinishReason, Phase
from tests.engine.mutants import mutate
from tests.engine.test_loop import SOON, Heard, Ticks
from tests.engine.toy import Bench, ToyRunner, alone, prompt, request

EVENTS = list[tuple[str, int]]


class ToyLauncher:
    """Computes when it is waited for, in the order of launches, and notes what happens when."""

    def __init__(self, inner: ToyRunner, events: EVENTS) -> None:
        self._inner = inner
        self._events = events
        self.errors: dict[int, Exception] = {}
        self.launched = self.landed = 0

    def run(self, plan: StepPlan) -> StepResult:
        raise AssertionError("who can launch is not run")

    def launch(self, plan: StepPlan) -> Callable[[], StepResult]:
        number = self.launched
        self.launched += 1
        self._events.append(("launch", number))
        assert self.launched - self.landed <= 2, "three steps at once"

        @cache
        def wait() -> StepResult:
            assert self.landed == number, "waited for out of turn"
            self.landed += 1
            self._events.append(("land", number))
            if number in self.errors:
                raise self.errors[number]
            return self._inner.run(plan)

        return wait


class Rig:
    def __init__(self) -> None:
        self.events: EVENTS = []
        bench = Bench(budget=12, total=128)
        self.core, self.heard, self.inner = bench.core, Heard(), bench.runner
        self.runner = ToyLauncher(bench.runner, self.events)
        self.loop = EngineLoop(self.core, self.runner, self.heard, Ticks(), name="test")
        self.loop.observe(lambda outcome: self.events.append(("heard", len(outcome.emitted))))

    def submit(self, *names: str, length: int = 5, max_tokens: int = 9) -> None:
        """All between the same two steps."""

        def enter(core: EngineCore) -> None:
            for name in names:
                core.submit(request(name, prompt(length), max_tokens))

        self.loop.call(enter).result(SOON)

    def tokens(self, name: str) -> list[int]:
        emitted = self.heard.emitted
        return [one.drawn.token for one in emitted if one.key.request_id == name and one.drawn]


@pytest.fixture
def rig() -> Iterator[Rig]:
    rig = Rig()
    rig.loop.start()
    yield rig
    rig.loop.call(EngineCore.check).result(SOON)
    rig.loop.stop(SOON)
    assert rig.loop.ended.done()


def test_the_next_step_is_launched_before_the_tokens_of_the_present_one_are_there(rig: Rig) -> None:
    rig.submit("a")
    rig.heard.ends(1)
    rig.loop.call(lambda core: None).result(SOON)
    steps = [event for event in rig.events if event[0] != "heard"]
    # The prefill alone, then each decode beside the next; after the last there is nothing to launch.
    assert steps == [
        ("launch", 0), ("land", 0), ("launch", 1), *(
            event for step in range(1, 8) for event in (("launch", step + 1), ("land", step))
        ), ("land", 8),
    ]  # fmt: skip
    assert rig.tokens("a") == alone(request("a", prompt(5), 9))


def test_who_ends_by_a_token_of_his_own_has_a_step_in_vain_and_is_not_heard_of_again(rig: Rig) -> None:
    requests = [request(f"r{index}", prompt(9, index), 60, ignore_eos=index < 2) for index in range(6)]
    for one in requests:
        rig.loop.call(lambda core, one=one: core.submit(one)).result(SOON)
    emitted = rig.heard.ends(6)
    for one in requests:
        assert rig.tokens(one.id) == alone(one)
    assert {one.finish for one in emitted if one.finish} == {FinishReason.STOP, FinishReason.LENGTH}
    assert rig.inner.ahead > 20


def test_calls_run_while_a_step_is_in_flight_and_blocks_are_free_when_it_is_over(rig: Rig) -> None:
    cancelled: list[bool] = []

    def cancel(core: EngineCore) -> None:
        assert rig.runner.launched == rig.runner.landed + 1, "no step is in flight"
        cancelled.append(core.cancel("a"))

    rig.loop.observe(lambda _: rig.loop.call(cancel) if rig.runner.landed == 10 else None)
    rig.submit("a", "b", max_tokens=60)
    rig.heard.ends(1)
    assert cancelled == [True]
    assert rig.tokens("a") == alone(request("a", prompt(5), 60))[: len(rig.tokens("a"))]
    assert rig.tokens("b") == alone(request("b", prompt(5), 60))
    assert rig.loop.call(lambda core: core.status().blocks_used).result(SOON) == 0


def test_a_step_that_fails_takes_the_one_behind_it_along(rig: Rig, caplog: pytest.LogCaptureFixture) -> None:
    rig.runner.errors = {3: ValueError("no such token"), 4: ValueError("neither")}
    with caplog.at_level(logging.CRITICAL):
        rig.submit("a")
        emitted = rig.heard.ends(1)
    assert [one.finish for one in emitted if one.finish] == [FinishReason.FAILED]
    rig.submit("b")
    rig.heard.ends(2)
    assert rig.tokens("b") == alone(request("b", prompt(5), 9))
    assert rig.loop.failed is None


def missed() -> list[int]:
    """The tokens of a sequence that was frozen while one step landed and ran again when the next one did."""
    bench = Bench(budget=12)
    bench.core.submit(request("a", prompt(5), 9))
    bench.step()
    core, now = bench.core, bench.core.plan(0.0)
    then = core.plan_ahead(0.0)
    assert now is not None
    assert then is not None
    core.freeze("a")
    bench.outcomes.append(core.commit(now, bench.runner.run(now), 1.0))
    core.resume("a")
    bench.outcomes.append(core.commit(then, bench.runner.run(then), 2.0))
    return bench.output("a")


def test_a_result_after_one_that_was_missed_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    assert missed() == alone(request("a", prompt(5), 9))[:1]
    mutate(monkeypatch, Commits, "commit", "sequence.computed != work.start", "False")
    assert missed() != alone(request("a", prompt(5), 9))[:1]


def test_blocks_that_are_given_back_are_free_when_the_last_step_lands_that_may_write_there() -> None:
    bench = Bench(budget=12)
    for name in "ab":
        bench.core.submit(request(name, prompt(5), 20))
    while (
        any(sequence.phase is not Phase.DECODE for sequence in bench.core.running) or not bench.core.running
    ):
        bench.step()
    core, now = bench.core, bench.core.plan(0.0)
    then = core.plan_ahead(0.0)
    assert now is not None
    assert then is not None
    assert then.fed == (0, 1)
    held = len(core.sequences("a")[0].blocks)
    core.cancel("a")
    before = core.pool.available
    core.commit(now, bench.runner.run(now), 1.0)
    assert core.pool.available == before, "the second step still writes there"
    core.commit(then, bench.runner.run(then), 2.0)
    assert core.pool.available == before + held
    core.check()


def test_it_looks_ahead_while_others_wait_for_whom_there_is_no_place(rig: Rig) -> None:
    requests = [request(f"r{index}", prompt(3, index), 12 + index) for index in range(20)]

    def arrive(core: EngineCore) -> None:
        for one in requests:
            core.submit(one)

    rig.loop.call(arrive).result(SOON)
    rig.heard.ends(20)
    for one in requests:
        assert rig.tokens(one.id) == alone(one)
    assert rig.inner.ahead > len(rig.inner.plans) // 3


def test_only_runners_that_compute_by_themselves_are_looked_ahead_of() -> None:
    bench = Bench()
    assert not isinstance(bench.runner, Launcher)
    assert isinstance(ToyLauncher(bench.runner, []), Launcher)


@pytest.mark.parametrize(
    "changes", [{"presence_penalty": 0.5}, {"grammar": "start: /a+/"}], ids=["penalty", "grammar"]
)
def test_nothing_is_decided_ahead_of_a_draw_that_looks_back(changes: dict[str, Any]) -> None:
    ahead = []
    for settings in ({}, changes):
        bench, one = Bench(budget=12), request("a", prompt(5), 9)
        bench.core.submit(replace(one, sampling=replace(one.sampling, **settings)))
        bench.step()
        now = bench.core.plan(0.0)
        assert now is not None
        ahead.append(bench.core.plan_ahead(0.0) is not None)
    assert ahead == [True, False]
