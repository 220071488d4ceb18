"""The journey of a request: what its driver is told to do, event by event."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.errors import (
    ContextLengthExceeded,
    Draining,
    InstanceDied,
    NoPrefillInstance,
    Overloaded,
    TandemError,
)
from engine.request import Request, Sampling
from engine.sequence import Epoch
from global_scheduler.journey import (
    ENDED,
    Action,
    Cancel,
    Cancelled,
    Event,
    Fail,
    Fence,
    Finish,
    Journey,
    Lost,
    Moved,
    Patience,
    Place,
    Placed,
    Progress,
    Refused,
    Start,
    Started,
    State,
    Wait,
    Waited,
)
from global_scheduler.placement import Placement

PATIENCE = Patience(attempts=3, place_timeout=10.0, recovery_timeout=30.0)
P0D0 = Placement("p0", "d0", "test")
P1D1 = Placement("p1", "d1", "test")


def request(n: int = 1, max_tokens: int = 10) -> Request:
    return Request(id="r", prompt=tuple(range(50)), sampling=Sampling(max_tokens=max_tokens, n=n))


def begun(n: int = 1, patience: Patience = PATIENCE) -> Journey:
    journey = Journey(request(n), patience)
    journey.begin(0.0)
    return journey


def running(n: int = 1) -> Journey:
    journey = begun(n)
    journey.step(Placed(P0D0), 0.0)
    journey.step(Started(0), 0.0)
    return journey


def test_it_begins_by_asking_for_a_place() -> None:
    place = Place(attempt=0, prompt_tokens=50, max_tokens=10, choices=2, exclude=frozenset())
    assert Journey(request(n=2), PATIENCE).begin(0.0) == (place,)


def test_a_placement_is_started_afresh() -> None:
    assert begun().step(Placed(P0D0), 0.0) == (Start(P0D0, Epoch(0, 0), ()),)


def test_it_ends_when_the_last_choice_has_finished() -> None:
    journey = running(n=2)
    assert journey.step(Progress(0, [7], finished=True), 1.0) == ()
    assert journey.step(Progress(1, [8], finished=True), 1.0) == (Finish(),)
    assert journey.state is State.DONE
    assert journey.outputs == {0: [7], 1: [8]}


def test_a_token_may_overtake_the_answer_to_start() -> None:
    journey = begun()
    journey.step(Placed(P0D0), 0.0)
    journey.step(Progress(0, [7]), 0.0)
    assert journey.state is State.RUNNING
    assert journey.step(Started(0), 0.0) == ()


def test_the_loss_of_its_holder_places_it_again_with_the_tokens_so_far() -> None:
    journey = running(n=2)
    journey.step(Progress(0, [7, 8]), 1.0)
    journey.step(Progress(1, [9], finished=True), 1.0)
    assert journey.step(Lost("p0", "killed"), 2.0) == (
        Fence(Epoch(1, 0)),
        Cancel("p0"),
        Cancel("d0"),
        Place(attempt=1, prompt_tokens=52, max_tokens=8, choices=1, exclude=frozenset({"p0"})),
    )
    assert journey.step(Placed(P1D1), 2.0) == (Start(P1D1, Epoch(1, 0), ((0, (7, 8)),)),)
    assert journey.recoveries == 1


def test_all_unfinished_choices_are_recovered_even_those_without_a_token() -> None:
    journey = running(n=3)
    journey.step(Progress(1, [9]), 1.0)
    journey.step(Progress(2, [5], finished=True), 1.0)
    journey.step(Lost("p0", "killed"), 2.0)
    assert journey.step(Placed(P1D1), 2.0) == (Start(P1D1, Epoch(1, 0), ((0, ()), (1, (9,)))),)


def test_the_loss_of_an_instance_that_does_not_hold_it_changes_nothing() -> None:
    assert running().step(Lost("d0", "killed"), 1.0) == ()


def test_after_a_move_the_destination_holds_it() -> None:
    journey = running()
    journey.step(Moved("d0", Epoch(0, 1)), 1.0)
    assert journey.step(Lost("p0", "killed"), 2.0) == ()
    assert journey.step(Lost("d0", "killed"), 2.0)[0] == Fence(Epoch(1, 0))


def test_a_move_of_an_older_attempt_is_not_believed() -> None:
    journey = running()
    journey.step(Lost("p0", "killed"), 1.0)
    journey.step(Placed(P1D1), 1.0)
    journey.step(Moved("d0", Epoch(0, 1)), 1.0)
    assert (journey.holder, journey.epoch) == ("p1", Epoch(1, 0))


def test_a_full_instance_is_left_out_after_a_pause() -> None:
    journey = begun()
    journey.step(Placed(P0D0), 0.0)
    fence, cancel, other, wait = journey.step(Refused(Overloaded("full"), "p0"), 0.0)
    assert (fence, cancel, other) == (Fence(Epoch(1, 0)), Cancel("p0"), Cancel("d0"))
    assert isinstance(wait, Wait)
    (place,) = journey.step(Waited(), 0.1)
    assert isinstance(place, Place)
    assert place.exclude == {"p0"}


@pytest.mark.parametrize("error", [Draining("going"), InstanceDied("gone"), TandemError("bug")])
def test_an_instance_that_cannot_help_is_left_at_once(error: TandemError) -> None:
    journey = begun()
    journey.step(Placed(P0D0), 0.0)
    assert isinstance(journey.step(Refused(error, "p0"), 0.0)[-1], Place)


def test_an_error_of_the_request_is_final_and_frees_it_everywhere() -> None:
    journey = begun()
    journey.step(Placed(P0D0), 0.0)
    error = ContextLengthExceeded("too long")
    assert journey.step(Refused(error, "p0"), 0.0) == (Cancel("p0"), Cancel("d0"), Fail(error))
    assert journey.state is State.FAILED


def test_a_refused_placement_is_asked_for_again_until_its_time_is_up() -> None:
    journey = begun()
    error = NoPrefillInstance("none")
    now, waits = 0.0, []
    while (action := journey.step(Refused(error), now)[-1]) != Fail(error):
        assert isinstance(action, Wait)
        waits.append(action.seconds)
        now += action.seconds
        journey.step(Waited(), now)
    assert 9.0 <= now <= 10.0
    assert waits[0] < 0.07
    assert max(waits) <= 1.25


def test_a_request_that_was_lost_has_the_time_of_a_recovery_to_be_placed() -> None:
    journey = running()
    journey.step(Progress(0, [7]), 1.0)
    journey.step(Lost("p0", "killed"), 1000.0)
    error = NoPrefillInstance("none")
    assert isinstance(journey.step(Refused(error), 1028.0)[-1], Wait)
    journey.step(Waited(), 1029.0)
    assert journey.step(Refused(error), 1030.0)[-1] == Fail(error)


@pytest.mark.parametrize("answer", [Refused(InstanceDied("gone"), "p0"), Lost("p0", "gone")])
def test_a_death_that_the_scheduler_does_not_know_yet_is_met_again_and_counts_once(answer: Event) -> None:
    journey = running()
    now = 0.0
    action = journey.step(Lost("p0", "killed"), now)[-1]
    for _ in range(3 * PATIENCE.attempts):
        if isinstance(action, Wait):
            now += action.seconds
            (action,) = journey.step(Waited(), now)
        assert isinstance(action, Place)
        journey.step(Placed(P0D0), now)
        action = journey.step(answer, now)[-1]
    assert isinstance(action, Wait), "and is not met again at once"
    journey.step(Waited(), now)
    assert isinstance(journey.step(Placed(P1D1), now)[-1], Start)


def test_each_other_instance_that_dies_before_it_takes_the_request_counts() -> None:
    journey = begun()
    for number in range(PATIENCE.attempts):
        journey.step(Placed(Placement(f"p{number}", "d", "test")), 0.0)
        actions = journey.step(Lost(f"p{number}", "killed"), 0.0)
    assert isinstance(actions[-1], Fail)


@pytest.mark.parametrize("error", [Overloaded("full"), Draining("going")])
def test_instances_that_are_full_or_go_bound_a_request_by_time_alone(error: TandemError) -> None:
    journey = running()
    action = journey.step(Lost("p0", "killed"), 0.0)[-1]
    now, refusals = 0.0, 0
    while not isinstance(action, Fail):
        if isinstance(action, Wait):
            now += action.seconds
            (action,) = journey.step(Waited(), now)
            continue
        refusals += 1
        there = f"p{refusals}" if refusals < 6 else "p1"
        journey.step(Placed(Placement(there, "d", "test")), now)
        action = journey.step(Refused(error, there), now)[-1]
    assert refusals > PATIENCE.attempts + 6
    assert 28.0 <= now <= 30.0


def test_a_request_that_brings_no_token_is_given_up_after_its_attempts() -> None:
    journey = begun()
    for attempt in range(PATIENCE.attempts):
        journey.step(Placed(P0D0), 0.0)
        journey.step(Started(attempt), 0.0)
        actions = journey.step(Lost("p0", "killed"), 0.0)
    assert isinstance(actions[-1], Fail)
    assert "p0" in str(actions[-1].error)


def test_a_request_that_gets_on_is_never_given_up() -> None:
    journey = begun()
    for attempt in range(3 * PATIENCE.attempts):
        journey.step(Placed(P0D0), 0.0)
        journey.step(Started(attempt), 0.0)
        journey.step(Progress(0, [attempt]), 0.0)
        assert isinstance(journey.step(Lost("p0", "killed"), 0.0)[-1], Place)


def test_instances_left_out_are_forgiven_once_the_request_has_run() -> None:
    journey = begun()
    journey.step(Placed(P0D0), 0.0)
    journey.step(Refused(Draining("going"), "p0"), 0.0)
    journey.step(Placed(P1D1), 0.0)
    journey.step(Started(1), 0.0)
    place = journey.step(Lost("p1", "killed"), 9.0)[-1]
    assert isinstance(place, Place)
    assert place.exclude == {"p1"}


def test_cancelling_frees_it_everywhere() -> None:
    journey = running()
    assert journey.step(Cancelled(), 1.0) == (Cancel("p0"), Cancel("d0"), Finish())
    assert journey.state is State.CANCELLED


def test_cancelling_while_it_waits_has_nobody_to_tell() -> None:
    assert begun().step(Cancelled(), 1.0) == (Finish(),)


@pytest.mark.parametrize(
    "event",
    [Waited(), Started(7), Placed(P1D1), Refused(Overloaded("late")), Refused(Overloaded("late"), "p9")],
    ids=lambda event: type(event).__name__,
)
def test_an_answer_that_comes_too_late_changes_nothing(event: Event) -> None:
    journey = running()
    assert journey.step(event, 1.0) == ()
    assert journey.state is State.RUNNING


@pytest.mark.parametrize("tries", [1023, 1024, 100_000])
def test_pauses_have_no_end(tries: int) -> None:
    assert 0.75 * PATIENCE.longest_pause <= PATIENCE.pause("a", tries) <= 1.25 * PATIENCE.longest_pause


def test_pauses_differ_between_requests_and_are_the_same_each_time() -> None:
    pauses = {PATIENCE.pause(name, 2) for name in "abcdefgh"}
    assert len(pauses) == 8
    assert PATIENCE.pause("a", 2) == PATIENCE.pause("a", 2)


@dataclass
class Driver:
    """Carries out actions on a made-up cluster, where what happens next is drawn from `data`."""

    data: Any
    journey: Journey
    now: float = 0.0
    epochs: list[Epoch] = field(default_factory=list)
    started: Start | None = None
    ends: int = 0
    queue: list[Event] = field(default_factory=list)

    def carry_out(self, actions: tuple[Action, ...]) -> None:
        for action in actions:
            match action:
                case Fence(epoch):
                    assert not self.epochs or epoch > self.epochs[-1]
                    self.epochs.append(epoch)
                case Place():
                    assert action.choices + len(self.journey.finished) == self.journey.request.sampling.n
                    full = Refused(NoPrefillInstance("none"))
                    self.queue.append(self.data.draw(st.sampled_from([Placed(P0D0), Placed(P1D1), full])))
                case Start(placement, epoch, outputs):
                    self.check_outputs(outputs)
                    name = placement.prefill
                    answers = [
                        Started(epoch.attempt), Refused(Overloaded("full"), name), Refused(Draining("go"),
                        name)
                    ]  # fmt: skip
                    self.queue.append(self.data.draw(st.sampled_from([*answers, Lost(name, "killed")])))
                case Wait(seconds):
                    self.now += seconds
                    self.queue.append(Waited())
                case Finish() | Fail():
                    self.ends += 1

    def check_outputs(self, outputs: tuple[tuple[int, tuple[int, ...]], ...]) -> None:
        known = {c: tuple(o) for c, o in self.journey.outputs.items() if c not in self.journey.finished}
        assert dict(outputs) in ([known, {}] if not any(map(any, known.values())) else [known])

    def run(self) -> None:
        self.carry_out(self.journey.begin(self.now))
        for _ in range(2000):
            if self.journey.state in ENDED:
                return
            event = self.queue.pop(0) if self.queue else self.happens()
            self.carry_out(self.journey.step(event, self.now))
        raise AssertionError("the journey has no end")

    def happens(self) -> Event:
        journey = self.journey
        alive = [choice for choice in journey.outputs if choice not in journey.finished]
        choice = self.data.draw(st.sampled_from(alive))
        count = len(journey.outputs[choice])
        token = Progress(choice, [count], finished=count + 1 == journey.request.sampling.max_tokens)
        move = Moved("d0", Epoch(journey.epoch.attempt, journey.epoch.move + 1))
        return self.data.draw(st.sampled_from([token, token, token, move, Lost(journey.holder, "killed")]))


@given(st.data())
def test_whatever_happens_it_ends_once_with_tokens_in_order(data: Any) -> None:
    journey = Journey(request(n=2, max_tokens=4), PATIENCE)
    driver = Driver(data, journey)
    driver.run()
    assert driver.ends == 1
    assert all(output == list(range(len(output))) for output in journey.outputs.values())
    if journey.state is State.DONE:
        assert all(len(output) == 4 for output in journey.outputs.values())
    assert journey.step(Cancelled(), driver.now) == ()
