"""The next of an immutable state."""

from __future__ import annotations

from dataclasses import FrozenInstanceError, dataclass

import pytest

from migration.successor import replace


@dataclass(frozen=True)
class State:
    name: str
    state: int = 0


def test_what_is_not_named_stays_and_the_old_one_too() -> None:
    old = State("a")
    new = replace(old, state=1)
    assert (new, old, hash(new)) == (State("a", 1), State("a"), hash(State("a", 1)))
    with pytest.raises(FrozenInstanceError):
        new.state = 2  # type: ignore[misc]


def test_a_field_that_it_has_not_is_refused() -> None:
    with pytest.raises(TypeError, match="State has no size"):
        replace(State("a"), size=1)
