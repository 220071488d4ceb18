"""How many requests met the objective of a phase lately, by how long ago they began.

Whether a change has helped is told only by what began after it:

    began …  ago   0–w   w–2w   2w–3w   …   older
    requests         7     12      15   …     31
    met              7     12       4   …      2      ← the pool has grown 2w ago: 19 of 19 since
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

SLICES = 12
"""The last one has all that is older."""

IN_WINDOW = 6
"""Slices in the window of time in which those that count have ended."""


@dataclass(frozen=True, slots=True)
class Attainment:
    """Requests that ended in a window of time, and those of them that `met` the objective.

    Both are counted by the time since the request began, in slices of `width` seconds, the youngest first.
    """

    width: float
    requests: tuple[int, ...]
    met: tuple[int, ...]

    def __post_init__(self) -> None:
        if self.width <= 0 or not len(self.requests) == len(self.met) == SLICES:
            raise ValueError(f"{SLICES} slices of a width above 0, not {self}")

    def since(self, age: float) -> tuple[int, int]:
        """Requests that began in the last `age` seconds, in whole slices, and those of them that met it."""
        whole = SLICES if age >= self.width * (SLICES - 1) else max(0, int(age / self.width))
        return sum(self.requests[:whole]), sum(self.met[:whole])


def attainment(window: float, told: Iterable[tuple[float, bool]]) -> Attainment:
    """Of requests that ended in the last `window` seconds: how long ago each began, and whether it met."""
    width = window / IN_WINDOW
    requests, met = [0] * SLICES, [0] * SLICES
    for age, did in told:
        at = min(SLICES - 1, max(0, int(age / width)))
        requests[at] += 1
        met[at] += did
    return Attainment(width, tuple(requests), tuple(met))


def together(window: float, told: Iterable[tuple[Sequence[int], Sequence[int]]]) -> Attainment | None:
    """What several count of the same window, as one: (requests, met) of each. None if nobody has any.

    Who counts in other slices, as another version might, is left out.
    """
    requests, met = [0] * SLICES, [0] * SLICES
    for counted, did in told:
        if not len(counted) == len(did) == SLICES:
            continue
        for at, (one, other) in enumerate(zip(counted, did, strict=True)):
            requests[at] += one
            met[at] += other
    return Attainment(window / IN_WINDOW, tuple(requests), tuple(met)) if any(requests) else None
