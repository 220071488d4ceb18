"""How long a step may take: told from the steps before it."""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest

from cluster.step_watch import REMEMBERED, LaunchWatch, Present, StepTimes, StepWatch, watch
from engine.core import Launcher
from engine.plan import StepPlan, StepResult, Work


def plan(tokens: int) -> StepPlan:
    return StepPlan(works=(Work("r", 0, range(tokens), 0, ()),))


class Slow:
    """A runner whose steps take as long as `seconds` says, on a clock of its own."""

    def __init__(self) -> None:
        self.now = 100.0
        self.seconds = 0.1
        self.seen: list[Present] = []
        self.watch = StepWatch(self, factor=10.0, floor=3.0, clock=lambda: self.now)

    def run(self, plan: StepPlan) -> StepResult:
        self.now += self.seconds
        self.seen.append(self.watch.present())
        if self.seconds > 50:
            raise ValueError("it was given up")
        return StepResult(())


def test_a_step_of_unknown_size_is_predicted_from_the_nearest_that_was_measured() -> None:
    times = StepTimes()
    assert times.predict(5) is None
    times.add(4, 0.1)
    times.add(64, 0.8)
    assert times.predict(1) == 0.1
    assert times.predict(33) == 0.8
    assert times.predict(256) == pytest.approx(3.2)


def test_the_slowest_of_the_last_steps_counts() -> None:
    times = StepTimes()
    times.add(8, 2.0)
    for _ in range(REMEMBERED - 1):
        times.add(8, 0.1)
    assert times.predict(8) == 2.0
    times.add(8, 0.1)
    assert times.predict(8) == 0.1


def test_a_step_may_take_a_multiple_of_its_prediction_and_never_less_than_the_floor() -> None:
    slow = Slow()
    slow.watch.run(plan(8))
    assert slow.watch.limit(8) == 3.0
    slow.seconds = 0.5
    slow.watch.run(plan(8))
    assert slow.watch.limit(8) == 5.0
    assert slow.watch.limit(32) == pytest.approx(20.0)


def test_before_the_first_measure_the_floor_stands_for_the_prediction() -> None:
    assert Slow().watch.limit(8) == 30.0


def test_the_step_under_way_is_told_while_it_runs_and_not_after() -> None:
    slow = Slow()
    slow.watch.run(plan(8))
    assert slow.seen == [Present(1, 8, pytest.approx(0.1), 30.0)]
    assert slow.watch.present() == Present(1)


def test_a_step_that_fails_is_not_measured_and_is_over() -> None:
    slow = Slow()
    slow.seconds = 60.0
    with pytest.raises(ValueError, match="given up"):
        slow.watch.run(plan(8))
    assert slow.watch.present().limit == 0
    assert slow.watch.limit(8) == 30.0


def stepping(slow: Slow) -> threading.Thread:
    """A step that is under way in a thread of its own, held up before it computes."""
    thread = threading.Thread(target=slow.watch.run, args=(plan(8),))
    thread.start()
    while not slow.watch.present().limit:
        assert thread.is_alive()
    return thread


def test_a_step_that_hangs_on_purpose_is_told_as_it_goes_beyond_its_limit_and_ends_when_it_may() -> None:
    slow = Slow()
    slow.watch.run(plan(8))
    slow.watch.take("delay=5ms hang")
    assert slow.watch.others("delay=5ms hang") == "delay=5ms"
    thread = stepping(slow)
    assert slow.watch.present() == Present(2, 8, 0.0, 3.0)
    slow.now += 3.5
    present = slow.watch.present()
    assert present.elapsed > present.limit
    assert len(slow.seen) == 1
    slow.watch.take("")
    thread.join(10)
    assert len(slow.seen) == 2
    assert slow.watch.present() == Present(2)


def test_without_the_word_no_step_hangs() -> None:
    slow = Slow()
    slow.watch.take("delay=5ms")
    slow.watch.run(plan(8))
    assert len(slow.seen) == 1


class Device(Slow):
    """A launcher: a launch takes a tenth of a step's time, and whoever waits the rest."""

    def __init__(self) -> None:
        super().__init__()
        self.watch: LaunchWatch = LaunchWatch(self, factor=10.0, floor=3.0, clock=lambda: self.now)

    def launch(self, plan: StepPlan) -> Callable[[], StepResult]:
        self.now += self.seconds / 10
        self.seen.append(self.watch.present())
        return lambda: self.run(plan)


def test_of_a_step_that_computes_by_itself_the_launch_and_the_wait_are_watched() -> None:
    device = Device()
    wait = device.watch.launch(plan(8))
    device.now += 1000.0
    assert device.watch.present() == Present(1)
    wait()
    assert device.seen == [
        Present(1, 8, pytest.approx(0.01), 30.0),
        Present(1, 8, pytest.approx(0.1), 3.0),
    ]
    assert device.watch.limit(8) == 3.0


def test_a_watch_launches_if_its_runner_does() -> None:
    assert isinstance(watch(Device(), factor=1.0, floor=1.0), Launcher)
    assert not isinstance(watch(Slow(), factor=1.0, floor=1.0), Launcher)
