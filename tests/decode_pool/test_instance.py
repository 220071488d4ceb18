"""A decode instance also reads prompts that start with it, and takes in what others hand over."""

from __future__ import annotations

import pytest

from engine.errors import Draining
from engine.sequence import START
from tests.engine.toy import alone, prompt, request
from tests.migration.pair import BOUND, pair


def test_a_short_prompt_starts_where_it_is_decoded() -> None:
    with pair() as both:
        one = request("r", prompt(3), 5)
        both.home.open(one, START)
        both.decode.start(one, (), START, "home").result(BOUND)
        assert both.home.output(one) == alone(one)
        assert both.home.pushers(one) == {"d"}


def test_a_cancel_frees_what_runs_here() -> None:
    with pair() as both:
        both.d.runner.hold()
        one = request("r", prompt(10), 50)
        both.home.open(one, START)
        both.decode.start(one, (), START, "home").result(BOUND)
        both.d.runner.permit()
        both.home.wait(lambda: bool(both.home.pushed))
        cancelled = both.decode.cancel(one.id)
        both.d.runner.permit(3)
        assert cancelled.result(BOUND)
        both.rest()
        assert not both.home.finished


def test_a_draining_instance_takes_no_new_request() -> None:
    with pair() as both:
        both.decode.drain()
        refused = both.decode.start(request("r", prompt(3), 5), (), START, "home")
        with pytest.raises(Draining):
            refused.result(BOUND)


def test_the_status_names_instance_and_role() -> None:
    with pair() as both:
        status = both.decode.status().result(BOUND)
        assert (status.instance, status.role) == ("d", "decode")
