"""A session in every order of events: one owner at a time, one end, no leak, and nothing waits for ever."""

from __future__ import annotations

import math
from typing import Any

import pytest

from engine.sequence import Epoch
from migration.destination import Destination, DestinationState
from migration.events import (
    Allocated,
    Begin,
    Bounds,
    Broken,
    Claim,
    Claimed,
    Damaged,
    Free,
    Freeze,
    Frozen,
    Look,
    Lost,
    Progress,
    Resume,
    Scatter,
    Sent,
    Tick,
    Timeouts,
)
from migration.messages import Abort, Commit, Copy, Refused, Renew, Resend, Reserve, Reserved
from migration.source import TORN, Source, SourceState
from tests.migration.explore import ends, explore, starts
from tests.migration.model import Rules

EPOCH = Epoch(2, 5)
TIMES = Timeouts()


@pytest.mark.parametrize("kind", ["handoff", "running", "waiting"])
def test_every_order_of_events_with_one_fault_ends_well(kind: str, full: bool) -> None:
    faults = Rules().faults if full else SOME.get(kind, Rules().faults)
    rules = Rules(faults=faults)
    assert explore(rules, starts(rules, 1, 2 if full else 1)[kind]) > 15_000
    never = {"stop string"} if kind == "handoff" else {"end"}
    assert rules.faults - never <= rules.labels, "a fault that never happened"


SOME = {
    "handoff": Rules().faults - {"damage"},
    "running": frozenset(
        {"preempt", "stop string", "choice ends", "no room", "kill source", "kill destination"}
    ),
}
"""What is tried with reduced counts; everything befalls a request that waits."""

PAIRS = [
    ("lose", "kill source"),
    ("lose", "kill destination"),
    ("damage", "repeat"),
    ("damage", "lose"),
    ("damage", "choice ends"),
    ("no room", "cut"),
]


@pytest.mark.parametrize("faults", PAIRS, ids=" and ".join)
@pytest.mark.parametrize("kind", ["handoff", "running", "waiting"])
def test_every_order_of_events_with_two_faults_ends_well(kind: str, faults: set[str], full: bool) -> None:
    if not full and (kind == "running" or "damage" in faults):
        pytest.skip("many worlds: run with --full")
    rules = Rules(faults=Rules().faults if full and kind == "waiting" else frozenset(faults))
    explore(rules, starts(rules, 2)[kind])


@pytest.mark.parametrize("kind", ["handoff", "running", "waiting"])
def test_without_faults_and_waits_the_destination_always_ends_up_with_the_request(kind: str) -> None:
    rules = Rules()
    assert {world.owner for world in ends(rules, starts(rules, 0)[kind])} == {"destination"}


def feed(half: Any, *events: Any, now: float = 0.0) -> tuple[Any, list[Any]]:
    done: list[Any] = []
    for event in events:
        half, actions = half.on(event, now)
        done += actions
    return half, done


def copying(cached: int = 0) -> Source:
    source, actions = feed(Source(EPOCH, TIMES), Begin(9), Reserved(cached, 9))
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


def test_a_source_that_has_sent_commit_copies_again_without_going_back_on_it() -> None:
    committing, _ = feed(copying(), Progress(3), Sent(), Frozen(4), Sent())
    again, actions = feed(committing, Resend(1), Sent())
    assert actions == [Copy(1, 3), Commit(4)]
    assert committing.state is again.state is SourceState.COMMITTING
    assert feed(again, Lost("cut"))[0].state is SourceState.DOUBT


def test_what_is_torn_is_kept_where_it_would_have_been_committed() -> None:
    source, _ = feed(copying(), Progress(3), Sent(), Frozen(4))
    assert source.decide(Renew(), 0.0, torn=True) == (source, ())
    kept, actions = source.decide(Sent(), 0.0, torn=True)
    assert (kept.state, actions) == (SourceState.KEPT, (Abort(TORN), Resume(EPOCH)))


def test_what_is_torn_when_it_is_sent_again_is_left_to_the_home() -> None:
    committing, _ = feed(copying(), Progress(3), Sent(), Frozen(4), Sent(), Resend(1))
    doubting, actions = committing.decide(Sent(), 0.0, torn=True)
    assert (doubting.state, actions) == (SourceState.DOUBT, (Claim(Epoch(2, 7)),))


def live(**bounds: Any) -> Source:
    known: dict[str, Any] = {"last_blocks": 4, "pause": -1.0} | bounds
    source, _ = feed(Source(EPOCH, TIMES, Bounds(**known)), Begin(20), Reserved(0, 20))
    return source  # type: ignore[no-any-return]


def test_a_live_migration_looks_copies_and_looks_again() -> None:
    source, actions = feed(live(), Progress(9, 1), Sent(), Progress(14, 1), Sent(), Progress(16, 1))
    assert actions == [Copy(0, 9), Look(), Copy(9, 5), Look(), Freeze()]
    _, actions = feed(source, Frozen(17), Sent())
    assert actions == [Copy(14, 3), Commit(17)]


def test_a_small_request_is_frozen_at_once() -> None:
    _, actions = feed(Source(EPOCH, TIMES, Bounds()), Begin(12), Reserved(0, 12))
    assert actions == [Reserve(12, True), Freeze()]


def test_a_predicted_pause_is_the_pace_of_the_last_copy_times_what_remains() -> None:
    source, _ = feed(live(pause=0.05), Progress(10, 1))
    source, _ = feed(source, Sent(), now=0.1)
    assert source.pace == pytest.approx(0.01)
    assert feed(source, Progress(14, 1), now=0.1)[1] == [Freeze()]
    assert feed(source, Progress(15, 1), now=0.1)[1] == [Copy(10, 5)]


def test_what_has_outgrown_its_reservation_asks_for_more_before_it_is_copied() -> None:
    source, actions = feed(live(), Progress(24, 1))
    assert actions == [Reserve(29, True)]
    assert feed(source, Reserved(0, 29))[1] == [Copy(0, 24)]
    assert feed(source, Reserved(0, 20))[1] == [], "an answer to the first RESERVE, come twice"
    refused, actions = feed(source, Refused("no room", "full"))
    assert (refused.state, actions) == (SourceState.KEPT, [Resume(EPOCH)])


def test_a_request_that_outruns_its_copies_is_kept() -> None:
    looks = [event for blocks in (5, 10, 15, 20) for event in (Progress(blocks), Sent())]
    source, _ = feed(live(), *looks)
    assert source.state is SourceState.KEPT
    assert "5 blocks behind after 3 live stages" in source.reason


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


def test_a_damaged_chunk_is_asked_for_again_and_what_follows_it_passed_over() -> None:
    destination, actions = feed(reserved(), Copy(0, 1), Damaged(), Copy(2, 1), Commit(3))
    assert actions == [Scatter(0, 1), Resend(1)]
    _, actions = feed(destination, Copy(1, 2), Commit(3))
    assert actions == [Scatter(1, 2), Claim(Epoch(2, 6))]


def test_chunks_are_asked_for_again_only_so_often() -> None:
    destination, actions = feed(reserved(), *[Damaged()] * (TIMES.resends + 1))
    assert [type(action) for action in actions] == [Resend] * TIMES.resends + [Free, Abort]
    assert destination.state is DestinationState.CLOSED


def test_a_message_that_makes_no_sense_ends_the_session() -> None:
    destination, _ = feed(reserved(), Broken("of the wrong size"))
    assert destination.state is DestinationState.CLOSED


def test_an_end_is_final() -> None:
    kept, _ = feed(copying(), Abort("no"))
    assert feed(kept, Reserved(0, 9), Progress(1), Frozen(2), Tick(), Claimed(True)) == (kept, [])
