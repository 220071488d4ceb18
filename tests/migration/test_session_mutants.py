"""Wrong variants of either half of a session: the model must find each of them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest

from cluster.stream_order import Ownership
from engine.sequence import Epoch
from migration.destination import LEASE_ENDED, Destination, DestinationState
from migration.events import Adopt, Dropped, Free, Release, Resume
from migration.messages import Abort, Commit, Committed, Copy, Refused, Resend
from migration.source import Source, SourceState
from tests.migration.explore import ends, explore, starts
from tests.migration.model import Rules
from tests.migration.world import Violation


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


class CommitsWhatIsTorn(Source):
    def decide(self, event: Any, now: float, *, torn: bool) -> Any:
        return self.on(event, now)


class CommitsAgainWhatIsTorn(Source):
    """Sends damaged blocks once more, of a choice that has ended meanwhile too."""

    def decide(self, event: Any, now: float, *, torn: bool) -> Any:
        return super().decide(event, now, torn=torn and self.state is not SourceState.COMMITTING)


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


class AdoptsAfterItsLeaseEnded(Destination):
    """It says that the lease has ended, and takes a COMMIT until another lease has."""

    def on(self, event: Any, now: float) -> Any:
        after, actions = super().on(event, now)
        if after.expired and self.reason != LEASE_ENDED:
            waits = replace(self, reason=LEASE_ENDED, deadline=now + self.timeouts.lease)
            return waits, tuple(action for action in actions if action != Free())
        return after, actions


class AdoptsIntoWhatItHasFreed(Destination):
    """The same, with blocks that may be another's by then."""

    def on(self, event: Any, now: float) -> Any:
        after, actions = super().on(event, now)
        if self.reason == LEASE_ENDED:
            return after, tuple(action for action in actions if action != Free())
        if after.expired:
            return replace(self, reason=LEASE_ENDED, deadline=now + self.timeouts.lease), actions
        return after, actions


class GrantsEveryClaim(Ownership):
    def claimed(self, instance: str, epoch: Epoch, lengths: Mapping[int, int]) -> Ownership:
        return replace(self, epoch=epoch, owner=instance)


class GrantsAnOlderMove(Ownership):
    def claimed(self, instance: str, epoch: Epoch, lengths: Mapping[int, int]) -> Ownership | None:
        any_move = replace(self, epoch=Epoch(self.epoch.attempt, -1))
        return super(GrantsAnOlderMove, any_move).claimed(instance, epoch, lengths)


class ListensToEveryEpoch(Ownership):
    def bound(self, epoch: Epoch, choice: int) -> int | None:
        return None


class RefusesEveryClaim(Ownership):
    def claimed(self, instance: str, epoch: Epoch, lengths: Mapping[int, int]) -> Ownership | None:
        return None


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
    ("handoff", CommitsWhatIsTorn, {"choice ends"}),
    ("waiting", CommitsWhatIsTorn, {"choice ends"}),
    ("running", CommitsWhatIsTorn, {"choice ends"}),
    ("waiting", CommitsAgainWhatIsTorn, {"choice ends", "damage"}),
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
LATE = [
    (AdoptsAfterItsLeaseEnded, "both ends run it, and nobody has fenced one"),
    (AdoptsIntoWhatItHasFreed, "without a reservation"),
]
HOMES = [
    (GrantsEveryClaim, "the home listens to both"),
    (GrantsAnOlderMove, "nobody has fenced one"),
    (ListensToEveryEpoch, "the home listens to both"),
    (RefusesEveryClaim, "the request never ends"),
]
KINDS = ["handoff", "running", "waiting"]


def found(kind: str, faults: set[str], match: str = ".", **mutant: Any) -> None:
    rules = Rules(faults=frozenset(faults), **mutant)
    with pytest.raises(Violation, match=match):
        explore(rules, starts(rules, len(faults))[kind])


@pytest.mark.parametrize(("kind", "mutant", "faults"), SOURCES)
def test_a_wrong_source_is_found(kind: str, mutant: type[Source], faults: set[str], full: bool) -> None:
    if mutant is TakesItBackWhenChunksAreDamaged and not full:
        pytest.skip("found late: run with --full")
    found(kind, faults, source=mutant)


@pytest.mark.parametrize(("kind", "mutant", "faults"), DESTINATIONS)
def test_a_wrong_destination_is_found(kind: str, mutant: type[Destination], faults: set[str]) -> None:
    found(kind, faults, destination=mutant)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("mutant", "match"), LATE)
def test_a_destination_that_adopts_after_its_lease_ended_is_found(
    kind: str, mutant: type[Destination], match: str
) -> None:
    found(kind, set(), match, destination=mutant)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("mutant", "match"), HOMES)
def test_a_home_that_decides_wrongly_is_found(kind: str, mutant: type[Ownership], match: str) -> None:
    found(kind, set(), match, home=mutant)


@pytest.mark.parametrize(
    "mutant", [{"destination": ClaimsNoNewEpoch}, {"source": CopiesBeyondItsReservation}]
)
def test_what_is_merely_useless_never_moves_a_request(mutant: dict[str, Any]) -> None:
    """Safe, but the request stays: of a session without faults it is the end that is wrong."""
    rules = Rules(**mutant)
    assert "source" in {world.owner for world in ends(rules, starts(rules, 0)["running"])}
