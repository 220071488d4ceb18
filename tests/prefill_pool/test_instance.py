"""A prefill instance hands over what decodes elsewhere and runs the rest itself."""

from __future__ import annotations

import pytest

from engine.errors import Conflict, ContextLengthExceeded, Draining
from engine.sequence import START, Epoch, Sequence
from tests.engine.toy import alone, prompt, request
from tests.migration.pair import BOUND, pair


def test_a_request_without_another_to_decode_it_stays() -> None:
    with pair() as both:
        one = request("r", prompt(20), 5)
        both.home.open(one, START)
        both.prefill.start(one, (), START, "home", None).result(BOUND)
        assert both.home.output(one) == alone(one)
        assert both.home.pushers(one) == {"p"}
        assert both.prefill.status().result(BOUND).handoffs_failed == 0


def test_a_recovered_request_is_handed_over_with_the_tokens_of_each_choice() -> None:
    with pair() as both:
        one = request("r", prompt(18), 12, n=3)
        whole = {choice: alone(one, choice) for choice in range(3)}
        epoch = Epoch(1, 0)
        both.home.open(one, epoch)
        choices = [Sequence(one, 0, whole[0][:7]), Sequence(one, 1), Sequence(one, 2, whole[2][:2])]
        both.prefill.start(one, choices, epoch, "home", both.address).result(BOUND)
        assert both.home.tail(one, 0, 7) == whole[0][7:]
        assert both.home.tail(one, 1, 0) == whole[1]
        assert both.home.tail(one, 2, 2) == whole[2][2:]
        assert both.home.pushers(one) == {"p", "d"}


def test_what_the_engine_refuses_is_not_handed_over() -> None:
    with pair() as both:
        one = request("r", prompt(20), 5000)
        refused = both.prefill.start(one, (), START, "home", both.address)
        with pytest.raises(ContextLengthExceeded):
            refused.result(BOUND)
        assert both.d.core.status().arrivals == 0


def test_a_second_start_of_the_same_attempt_is_refused() -> None:
    with pair() as both:
        both.p.runner.hold()
        one = request("r", prompt(20), 5)
        both.start(one)
        again = both.prefill.start(one, (), START, "home", both.address)
        both.p.runner.permit(100)
        with pytest.raises(Conflict):
            again.result(BOUND)
        assert both.home.output(one) == alone(one)


def test_a_newer_attempt_takes_the_place_of_one_under_way() -> None:
    with pair() as both:
        both.p.runner.hold()
        one = request("r", prompt(40), 5)
        both.start(one)
        both.p.runner.permit()
        both.home.open(one, Epoch(1, 0))
        newer = both.prefill.start(one, (), Epoch(1, 0), "home", both.address)
        both.p.runner.permit(100)
        newer.result(BOUND)
        assert both.home.output(one) == alone(one)


def test_a_draining_instance_takes_no_new_request_and_ends_those_it_has() -> None:
    with pair() as both:
        both.p.runner.hold()
        one, two = request("one", prompt(20), 5), request("two", prompt(20), 5)
        both.start(one)
        both.prefill.drain()
        refused = both.prefill.start(two, (), START, "home", both.address)
        both.p.runner.permit(100)
        with pytest.raises(Draining):
            refused.result(BOUND)
        assert both.home.output(one) == alone(one)


def test_the_status_names_instance_and_role() -> None:
    with pair() as both:
        status = both.prefill.status().result(BOUND)
        assert (status.instance, status.role) == ("p", "prefill")


def test_a_cancel_of_an_unknown_request_does_nothing() -> None:
    with pair() as both:
        assert not both.prefill.cancel("nobody").result(BOUND)
