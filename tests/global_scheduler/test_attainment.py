"""Attainment: requests by the time since they began, of one place or of several."""

from __future__ import annotations

from random import Random

import pytest

from global_scheduler.attainment import SLICES, Attainment, attainment, together


def test_only_what_began_since_is_counted_and_the_rest_when_long_enough_has_passed() -> None:
    told = attainment(60.0, [(5.0, True), (5.0, False), (15.0, False), (59.0, True), (1000.0, False)])
    assert told.since(9.9) == (0, 0), "a slice that is not whole"
    assert told.since(10.0) == (2, 1)
    assert told.since(20.0) == (3, 1)
    assert told.since(60.0) == (4, 2)
    assert told.since(109.0) == (4, 2)
    assert told.since(110.0) == told.since(float("inf")) == (5, 2)
    assert told.since(-1.0) == (0, 0)


@pytest.mark.parametrize("seed", range(3))
def test_several_that_count_are_as_one(seed: int) -> None:
    rng = Random(seed)
    requests = [(rng.uniform(0, 200), rng.random() < 0.7) for _ in range(99)]
    parts = [attainment(60.0, requests[at::4]) for at in range(4)]
    counted = [(one.requests, one.met) for one in parts]
    others = ((), ()), ((9,) * 10, (9,) * 10)
    assert together(60.0, [*counted, *others]) == attainment(60.0, requests), "other slices are left out"
    assert together(60.0, []) is together(60.0, [((), ())]) is None


def test_slices_are_as_many_as_they_are() -> None:
    with pytest.raises(ValueError, match="12 slices"):
        Attainment(10.0, (1,), (1,))
    with pytest.raises(ValueError, match="width above 0"):
        Attainment(0.0, (0,) * SLICES, (0,) * SLICES)
