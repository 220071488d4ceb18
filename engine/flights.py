"""Steps that have been planned and not yet committed: one, or one and the next."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence as SequenceOf
from typing import NamedTuple

from engine.plan import StepPlan
from engine.sequence import Sequence
from engine.tables import BlockTables


class Flight(NamedTuple):
    """A step, the sequence of each of its works, and when it was planned."""

    plan: StepPlan
    sequences: SequenceOf[Sequence]
    planned: float


class Flights:
    """They land in the order in which they took off. Blocks that are given back wait for the last of them."""

    def __init__(self, tables: BlockTables) -> None:
        self._tables = tables
        self._flights: deque[Flight] = deque()
        self._landed = 0.0

    def __len__(self) -> int:
        return len(self._flights)

    @property
    def first(self) -> Flight:
        return self._flights[0]

    def take_off(self, planned: tuple[StepPlan, list[Sequence]] | None, now: float) -> StepPlan | None:
        if planned is None:
            return None
        self._tables.hold()
        self._flights.append(Flight(*planned, now))
        return planned[0]

    def land(self, plan: StepPlan, now: float) -> tuple[SequenceOf[Sequence], float]:
        """The sequences of a plan that is over, and how many seconds it has taken."""
        assert self._flights, "no step is in flight"
        assert self.first.plan is plan, "another step is in flight"
        flight = self._flights.popleft()
        self._tables.let_go()
        began, self._landed = max(flight.planned, self._landed), now
        return flight.sequences, now - began
