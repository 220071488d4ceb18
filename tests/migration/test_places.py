"""Which handoffs have a place among the sessions: those whose prompts are being read, whatever waits."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import pytest

from engine.core import EngineCore, Reservation
from engine.plan import StepPlan
from engine.request import Request
from engine.sequence import START
from migration.link import Link
from migration.movement import Movement
from migration.outgoing import Outgoing
from migration.sender import Sender
from migration.transport import Address
from tests.engine.mutants import mutate
from tests.engine.toy import alone, prompt, request
from tests.migration.pair import BOUND, QUICK, Pair, pair

PATIENT = replace(QUICK, reserve=4 * BOUND, lease=4 * BOUND, stall=4 * BOUND)
"""So long that who waits for a place fails the test first."""


def together(both: Pair, *requests: Request) -> None:
    """All of them are in the queue before the first is planned."""

    def enter(core: EngineCore) -> None:
        for one in requests:
            core.submit(one, home="home", handoff=True)
            both.sender.hand_off(one, both.address, epoch=START, home="home")

    for one in requests:
        both.home.open(one, START)
    both.p.loop.call(enter).result(BOUND)


class Notes:
    """In which order the source planned works, movements set out, and the destination reserved."""

    def __init__(self, both: Pair) -> None:
        self._changed = threading.Condition()
        self.order: list[tuple[str, str]] = []
        plan, give, reserve = both.p.core.plan, both.sender._peers.give, both.d.core.reserve

        def planned(now: float) -> StepPlan | None:
            found = plan(now)
            self._note(*(("plan", work.request_id) for work in found.works) if found else ())
            return found

        def given(movement: Movement, to: Address) -> tuple[Link, Outgoing] | None:
            self._note(("set out", movement.request.id))
            return give(movement, to)

        def reserved(session: str, one: Request, tokens: int, *, handoff: bool) -> Reservation:
            self._note(("reserve", one.id))
            return reserve(session, one, tokens, handoff=handoff)

        both.p.core.plan = planned  # type: ignore[method-assign]
        both.sender._peers.give = given  # type: ignore[method-assign]
        both.d.core.reserve = reserved  # type: ignore[method-assign]

    def _note(self, *notes: tuple[str, str]) -> None:
        with self._changed:
            self.order += notes
            self._changed.notify_all()

    def wait(self, what: str, name: str) -> None:
        with self._changed:
            assert self._changed.wait_for(lambda: (what, name) in self.order, BOUND), f"no {what} of {name}"

    def who(self, what: str) -> list[str]:
        return [name for noted, name in self.order if noted == what]


@contextmanager
def held(**options: object) -> Iterator[tuple[Pair, Notes]]:
    """A pair whose source computes a step for each permit."""
    with pair(**options) as both:
        both.p.runner.hold()
        notes = Notes(both)
        try:
            yield both, notes
        finally:
            both.p.runner.permit(1000)


def prompts(count: int, length: int = 16) -> list[Request]:
    return [request(f"r{number}", prompt(length, number), 4) for number in range(count)]


def served(both: Pair, *requests: Request) -> None:
    for one in requests:
        assert both.home.output(one) == alone(one)


def waiting_prompts_reserve_nothing() -> None:
    with held(blocks=(256, 256)) as (both, notes):
        requests = prompts(4)
        together(both, *requests)
        for number, one in enumerate(requests, 1):
            notes.wait("reserve", one.id)
            assert notes.who("set out") == [f"r{other}" for other in range(number)]
            both.p.runner.permit()
        served(both, *requests)
        both.rest()
        assert both.sender.handed == 4


def test_a_prompt_that_waits_to_be_read_reserves_nothing() -> None:
    waiting_prompts_reserve_nothing()


def test_a_handoff_that_sets_out_when_it_is_submitted_would_be_noticed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    waits = "with self._door:\n        self._unread[request.id] = movement, to"
    mutate(monkeypatch, Sender, "hand_off", waits, "self._give(movement, to)")
    with pytest.raises(AssertionError):
        waiting_prompts_reserve_nothing()


def test_the_destination_reserves_while_the_first_chunk_is_computed() -> None:
    with held() as (both, notes):
        one = prompts(1, length=9)[0]
        together(both, one)
        notes.wait("reserve", one.id)
        assert not both.home.pushed, "its only step has not been permitted yet"
        both.p.runner.permit()
        served(both, one)


def test_a_prompt_that_overtakes_the_queue_overtakes_those_who_want_a_place_too() -> None:
    with held(max_sessions=2, timeouts=PATIENT, blocks=(256, 256)) as (both, _):
        low = prompts(5)
        high = replace(request("high", prompt(16, 9), 4), priority=1)
        together(both, *low, high)
        both.p.runner.permit()
        served(both, high)
        assert both.home.pushers(high) == {"p", "d"}
        both.p.runner.permit(1000)
        served(both, *low)


def test_who_waits_to_be_read_is_moving_and_can_be_cancelled() -> None:
    with held(blocks=(256, 256)) as (both, notes):
        first, second, third = requests = prompts(3)
        together(both, *requests)
        notes.wait("reserve", first.id)
        assert both.sender.moving == {one.id for one in requests}
        cancelled = both.prefill.cancel(second.id)
        both.p.runner.permit(1000)
        assert cancelled.result(BOUND)
        served(both, first, third)
        both.rest()
        assert (both.sender.handed, both.sender.moving) == (2, frozenset())
        assert second.id not in {name for _, name in notes.order}


def test_a_prompt_that_the_engine_drops_before_it_is_read_is_forgotten() -> None:
    with held(blocks=(256, 256)) as (both, notes):
        first, second = requests = prompts(2)
        together(both, *requests)
        notes.wait("reserve", first.id)
        dropped = both.p.loop.call(lambda core: core.cancel(second.id))
        both.p.runner.permit(1000)
        assert dropped.result(BOUND)
        served(both, first)
        both.rest()
        assert both.sender.moving == frozenset()


def test_prompts_that_are_read_after_the_sender_closed_stay() -> None:
    with held(blocks=(256, 256)) as (both, notes):
        requests = prompts(3)
        together(both, *requests)
        notes.wait("reserve", "r0")
        both.sender.close(BOUND)
        both.p.runner.permit(1000)
        served(both, *requests)
        assert {instance for instance, _ in both.home.pushed} == {"p"}
