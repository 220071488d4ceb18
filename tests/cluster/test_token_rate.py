"""Tokens a second of an instance: over the last seconds, however often its status is asked for."""

from __future__ import annotations

import pytest

from cluster.token_rate import SPAN, TokenRate


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.mark.parametrize("gap", [0.25, 0.3, 1.0, 7.0])
def test_only_the_last_seconds_count(gap: float) -> None:
    clock, count = Clock(), 1000
    rate = TokenRate(clock)
    assert rate.add(count) is None
    for pace, seconds in ((40.0, 20.0), (10.0, SPAN + 2 * gap)):
        for _ in range(round(seconds / gap) + 1):
            clock.now += gap
            count += round(pace * gap)
            told = rate.add(count)
        assert told == pytest.approx(round(pace * gap) / gap)


def test_one_that_is_asked_without_a_pause_keeps_few_counts() -> None:
    clock = Clock()
    rate = TokenRate(clock)
    for number in range(20_000):
        clock.now += 0.001
        told = rate.add(number)
    assert told == pytest.approx(1000.0, rel=0.01)
    assert len(rate._counts) < 100


def test_a_count_that_begins_anew_is_no_negative_rate() -> None:
    clock = Clock()
    rate = TokenRate(clock)
    rate.add(500)
    clock.now += 1.0
    assert rate.add(3) == 0.0
