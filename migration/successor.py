"""The next of an immutable state."""

from __future__ import annotations

from typing import TypeVar

T = TypeVar("T")


def replace(state: T, /, **changes: object) -> T:
    """As `dataclasses.replace`, at a tenth of the time: a request's movements take sixty of them.

    For a dataclass with neither slots nor `__post_init__`. Raises TypeError for a field that it has not.
    """
    fields = {**state.__dict__, **changes}
    if len(fields) != len(state.__dict__):
        unknown = " or ".join(changes.keys() - state.__dict__.keys())
        raise TypeError(f"{type(state).__name__} has no {unknown}")
    new = object.__new__(type(state))
    new.__dict__.update(fields)
    return new
