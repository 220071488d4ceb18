"""Wrong variants of either half of a session: the model must find each of them."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest

from engine.sequence import Epoch
from migration.destination import Destination, DestinationState
from migration.events import Adopt, Dropped, Release, Resume
from migration.messages import Abort, Commit, Committed, Copy, Refused, Resend
from migration.source import Source, SourceState
from tests.migration.explore import ends, explore, starts
from tests.migration.model import Rules, Violation


class FreesBeforeTheAnswer(Source):
    def on(self, event: Any, now: float) -> Any:
        after, actions = super().on(event, now)
        if any(isinstance(action, Commit) for action in actions):
            return replace(after, state=SourceState.GIVEN), (*actions, Release())
        return after, actions


class ResumesInDoubt(Source):
    def on(self, event: Any, now: float) -> Any:
        after, actions = super().on(event, now)
        if after.state is SourceState.DOUBT:
            return replace(after, state=SourceState.KEPT), (Resume(self.epoch),)
        return after, actions


class BelievesALateAnswer(Source):
    def on(self, event: Any, now: float) -> Any:
        if self.state is SourceState.DOUBT and isinstance(event, Committed):
            return replace(self, state=SourceState.GIVEN), (Release(),)
        return super().on(event, now)


class WaitsForTheAnswer(Source):
    def on(self, event: Any, now: float) -> Any:
        after, actions = super().on(event, now)
        if after.state is SourceState.COMMITTING:
            return replace(after, deadline=math.inf), actions
        return after, actions


class TakesAnyRefusalAsSettled(Source):
    def on(self, event: Any, now: float) -> Any:
        return super().on(replace(event, settled=True) if isinstance(event, Refused) else event, now)


class AdoptsWithoutClaim(Destination):
    def on(self, event: Any, now: float) -> Any:
        after, actions = super().on(event, now)
        if after.state is DestinationState.CLAIMING:
            adopting = replace(after, state=DestinationState.ADOPTING, deadline=math.inf)
            return adopting, (Adopt(self.taken_over),)
        return after, actions


class ClaimsNoNewEpoch(Destination):
    @property
    def taken_over(self) -> Epoch:
        return self.epoch


class KeepsNoLease(Destination):
    def on(self, event: Any, now: float) -> Any:
        after, actions = super().on(event, now)
        if after.state is DestinationState.RESERVED:
            return replace(after, deadline=math.inf), actions
        return after, actions


class TakesWhatIsThere(Destination):
    def on(self, event: Any, now: float) -> Any:
        if isinstance(event, Commit):
            event = Commit(self.received)
        return super().on(event, now)


class ForgetsToFree(Destination):
    def on(self, event: Any, now: float) -> Any:
        after, actions = super().on(event, now)
        return after, () if isinstance(event, Abort) else actions


class CommitsWithoutAFreeze(Source):
    """Takes the last look for the last word: the request runs on while it is given away."""

    def on(self, event: Any, now: float) -> Any:
        after, actions = super().on(event, now)
        if after.state is SourceState.FREEZING:
            return replace(after, state=SourceState.FROZEN)._next(now)
        return after, actions


class GoesOnWithWhatWasDropped(Source):
    def on(self, event: Any, now: float) -> Any:
        return (self, ()) if isinstance(event, Dropped) else super().on(event, now)


class TakesItBackWhenChunksAreDamaged(Source):
    """Copies again as if nothing had been promised yet."""

    def on(self, event: Any, now: float) -> Any:
        if self.state is SourceState.COMMITTING and isinstance(event, Resend):
            return replace(self, state=SourceState.FROZEN)._damaged(event.first)._next(now)
        return super().on(event, now)


class CopiesBeyondItsReservation(Source):
    def _copy(self, now: float, margin: int = 0) -> Any:
        return super(CopiesBeyondItsReservation, replace(self, reserved=99, asked=99))._copy(now, margin)


class ForgetsWhatItHadReserved(Destination):
    """A refusal of more blocks leaves the first ones reserved."""

    def on(self, event: Any, now: float) -> Any:
        return super(ForgetsWhatItHadReserved, replace(self, kept=False)).on(event, now)


class TakesWhatComesAfterTheDamage(Destination):
    def on(self, event: Any, now: float) -> Any:
        if self.resending and isinstance(event, Copy):
            event = Copy(self.received, event.first + event.count - self.received)
        return super().on(event, now)


SOURCES = [
    ("handoff", FreesBeforeTheAnswer, {"lose"}),
    ("handoff", ResumesInDoubt, {"cut"}),
    ("handoff", BelievesALateAnswer, {"cut"}),
    ("handoff", WaitsForTheAnswer, {"lose"}),
    ("waiting", TakesAnyRefusalAsSettled, {"lose", "repeat"}),
    ("waiting", TakesItBackWhenChunksAreDamaged, {"damage", "repeat"}),
    ("waiting", FreesBeforeTheAnswer, {"lose"}),
    ("waiting", ResumesInDoubt, {"cut"}),
    ("waiting", CommitsWithoutAFreeze, set()),
    ("running", CommitsWithoutAFreeze, set()),
    ("waiting", GoesOnWithWhatWasDropped, {"preempt"}),
]
DESTINATIONS = [
    ("handoff", AdoptsWithoutClaim, {"lose"}),
    ("handoff", KeepsNoLease, {"lose"}),
    ("handoff", TakesWhatIsThere, {"lose"}),
    ("handoff", ForgetsToFree, {"preempt"}),
    ("handoff", TakesWhatComesAfterTheDamage, {"damage"}),
    ("waiting", AdoptsWithoutClaim, {"cancel"}),
    ("waiting", ForgetsToFree, {"preempt"}),
    ("waiting", ForgetsWhatItHadReserved, {"no room"}),
    ("running", KeepsNoLease, {"lose"}),
]


def found(kind: str, faults: set[str], **mutant: Any) -> None:
    rules = Rules(faults=frozenset(faults), **mutant)
    with pytest.raises(Violation):
        explore(rules, starts(rules, len(faults))[kind])


@pytest.mark.parametrize(("kind", "mutant", "faults"), SOURCES)
def test_a_wrong_source_is_found(kind: str, mutant: type[Source], faults: set[str], full: bool) -> None:
    if mutant is TakesItBackWhenChunksAreDamaged and not full:
        pytest.skip("found late: run with --full")
    found(kind, faults, source=mutant)


@pytest.mark.parametrize(("kind", "mutant", "faults"), DESTINATIONS)
def test_a_wrong_destination_is_found(kind: str, mutant: type[Destination], faults: set[str]) -> None:
    found(kind, faults, destination=mutant)


@pytest.mark.parametrize(
    "mutant", [{"destination": ClaimsNoNewEpoch}, {"source": CopiesBeyondItsReservation}]
)
def test_what_is_merely_useless_never_moves_a_request(mutant: dict[str, Any]) -> None:
    """Safe, but the request stays: of a session without faults it is the end that is wrong."""
    rules = Rules(**mutant)
    assert "source" in {world.owner for world in ends(rules, starts(rules, 0)["running"])}
