"""A session in every order of events: one owner at a time, one end, no leak, and nothing waits for ever."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest

from engine.sequence import Epoch
from migration.destination import Destination, DestinationState
from migration.events import (
    Adopt,
    Allocated,
    Begin,
    Broken,
    Claimed,
    Frozen,
    Progress,
    Release,
    Resume,
    Sent,
    Tick,
    Timeouts,
)
from migration.messages import Abort, Commit, Committed, Copy, Refused, Renew, Reserve, Reserved
from migration.source import Source, SourceState
from tests.migration.model import Rules, Violation, World, explore

EPOCH = Epoch(2, 5)
TIMES = Timeouts()


def test_every_order_of_events_with_one_fault_ends_well() -> None:
    rules = Rules()
    assert explore(rules, budget=1) > 20_000
    assert rules.faults <= rules.labels, "a fault that never happened"


def test_every_order_of_events_with_two_faults_ends_well(full: bool) -> None:
    faults = Rules().faults if full else frozenset({"lose", "kill source", "kill destination"})
    explore(Rules(faults=faults), budget=2)


def test_without_faults_and_waits_the_destination_always_ends_up_with_the_request() -> None:
    assert {world.owner for world in ends(Rules())} == {"destination"}


def ends(rules: Rules) -> list[World]:
    """Every way in which a session without faults and timeouts can end."""
    todo, seen, found = [rules.begin(0)], set[World](), []
    while todo:
        world = todo.pop()
        following = [after for label, after, _ in rules.moves(world) if not label.endswith("waits")]
        found += [world] if not following else []
        todo += [after for after in following if after not in seen]
        seen.update(following)
    return found


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


@pytest.mark.parametrize(
    ("mutant", "faults"),
    [
        (FreesBeforeTheAnswer, {"lose"}),
        (ResumesInDoubt, {"cut"}),
        (BelievesALateAnswer, {"cut"}),
        (WaitsForTheAnswer, {"lose"}),
        (TakesAnyRefusalAsSettled, {"lose", "repeat"}),
    ],
)
def test_a_wrong_source_is_found(mutant: type[Source], faults: set[str]) -> None:
    with pytest.raises(Violation):
        explore(Rules(source=mutant, faults=frozenset(faults)), budget=len(faults))


@pytest.mark.parametrize("mutant", [AdoptsWithoutClaim, KeepsNoLease, TakesWhatIsThere, ForgetsToFree])
def test_a_wrong_destination_is_found(mutant: type[Destination]) -> None:
    with pytest.raises(Violation):
        explore(Rules(destination=mutant), budget=1)


def test_a_destination_that_does_not_raise_the_epoch_never_gets_a_request() -> None:
    with pytest.raises(AssertionError):
        assert {world.owner for world in ends(Rules(destination=ClaimsNoNewEpoch))} == {"destination"}


def feed(half: Any, *events: Any, now: float = 0.0) -> tuple[Any, list[Any]]:
    done: list[Any] = []
    for event in events:
        half, actions = half.on(event, now)
        done += actions
    return half, done


def copying(cached: int = 0) -> Source:
    source, actions = feed(Source(EPOCH, TIMES), Begin(9), Reserved(cached))
    assert actions == [Reserve(9)]
    return source  # type: ignore[no-any-return]


def test_chunks_are_copied_one_after_another_and_the_rest_before_commit() -> None:
    source, actions = feed(copying(), Progress(2), Progress(4), Sent(), Frozen(5), Sent(), Sent())
    assert actions == [Copy(0, 2), Copy(2, 2), Copy(4, 1), Commit(5)]
    assert source.state is SourceState.COMMITTING


def test_what_the_destination_has_cached_is_not_copied() -> None:
    _, actions = feed(copying(cached=3), Progress(2), Frozen(4), Sent())
    assert actions == [Copy(3, 1), Commit(4)]


def test_a_prompt_that_is_cached_whole_is_committed_at_once() -> None:
    _, actions = feed(copying(cached=4), Frozen(4))
    assert actions == [Commit(4)]


def test_a_source_with_nothing_to_send_renews_the_lease() -> None:
    source = copying()
    assert source.wake == TIMES.renew
    assert feed(source, Tick(), now=TIMES.renew)[1] == [Renew()]


@pytest.mark.parametrize("frozen", [False, True])
def test_a_source_that_gets_no_place_waits_only_once_its_prompt_is_done(frozen: bool) -> None:
    source, _ = feed(Source(EPOCH, TIMES), *([Frozen(0)] if frozen else []))
    assert source.wake == (TIMES.reserve if frozen else math.inf)


def test_before_commit_every_end_keeps_the_request_under_its_own_epoch() -> None:
    for event in (Refused("no room", "full"), Abort("lease")):
        source, actions = feed(copying(), Frozen(2), event)
        assert source.state is SourceState.KEPT
        assert actions[-1] == Resume(EPOCH)


def test_a_source_in_doubt_takes_the_request_back_under_the_epoch_after_the_destinations() -> None:
    committing, _ = feed(copying(), Frozen(1), Sent())
    _, actions = feed(committing, Tick(), Claimed(True), now=TIMES.commit)
    assert actions[-1] == Resume(Epoch(2, 7))


def reserved(cached: int = 0) -> Destination:
    destination, _ = Destination.begin(EPOCH, TIMES, 4)
    return feed(destination, Allocated(cached))[0]  # type: ignore[no-any-return]


def test_a_gap_in_the_blocks_ends_the_session() -> None:
    destination, actions = feed(reserved(), Copy(1, 1))
    assert destination.state is DestinationState.CLOSED
    assert isinstance(actions[-1], Abort)


def test_more_blocks_than_were_reserved_end_the_session() -> None:
    destination, _ = feed(reserved(), Copy(0, 5))
    assert destination.state is DestinationState.CLOSED


def test_a_repeated_copy_is_not_written_again() -> None:
    _, actions = feed(reserved(), Copy(0, 2), Copy(0, 2))
    assert len(actions) == 1


def test_a_damaged_chunk_ends_the_session() -> None:
    destination, _ = feed(reserved(), Broken("damaged"))
    assert destination.state is DestinationState.CLOSED


def test_an_end_is_final() -> None:
    kept, _ = feed(copying(), Abort("no"))
    assert feed(kept, Reserved(0), Progress(1), Frozen(2), Tick(), Claimed(True)) == (kept, [])
