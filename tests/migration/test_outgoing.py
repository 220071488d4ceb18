"""Who gets a place among the sessions to a peer, who stays for want of one, and what is sent at the end."""

from __future__ import annotations

import math
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from types import SimpleNamespace
from typing import Any

import pytest

from engine.sequence import START, Epoch, Phase, Sequence
from migration.envelope import Envelope, decode, encode
from migration.messages import Abort, Commit, Committed, Copy, Resend, Reserve, Reserved
from migration.movement import Asked, Movement, Snapshot
from migration.outgoing import Outgoing
from migration.session import Bounds, Timeouts
from migration.source import TORN, Source, SourceState
from migration.state import VERSION
from tests.engine.toy import ToyRunner, prompt, request
from tests.migration.pair import ToyStore


class FakeLink:
    """Notes what is sent: (session, message)."""

    broken = None
    agreed = SimpleNamespace(instance="d", version=VERSION, block_size=4)

    def __init__(self) -> None:
        self.sent: list[tuple[str, Any]] = []

    def post(self, letter: Callable[[], None]) -> bool:
        letter()
        return True

    def send(self, header: bytes, nbytes: int = 0, fill: Callable[[memoryview], None] | None = None) -> bool:
        if fill is not None:
            fill(memoryview(bytearray(nbytes)))
        envelope = decode(header)
        self.sent.append((envelope.session, envelope.message))
        return True


@dataclass
class Rig:
    """The sessions to a peer that has `most` places."""

    most: int = 1
    link: FakeLink = field(default_factory=FakeLink)
    ended: list[Movement] = field(default_factory=list)
    claimed: list[Epoch] = field(default_factory=list)
    store: ToyStore = field(default_factory=lambda: ToyStore(ToyRunner(16, 4)))

    def __post_init__(self) -> None:
        loop: Any = SimpleNamespace(call=lambda fn: Future())
        link: Any = self.link
        claims: Any = SimpleNamespace(ask=lambda home, name, epoch, lengths, done: self.claimed.append(epoch))
        self.outgoing = Outgoing(link, loop, self.store, claims, self.most, self.ended.append)

    def add(self, name: str, *, live: bool = False) -> Movement:
        movement = Movement(
            session=name,
            request=request(name, prompt(16), 9),
            home="home",
            reserve=lambda cut: 4,
            source=Source(START, Timeouts(), Bounds() if live else None),
            asked=Asked(name, "p", "d", "a test", 0.0) if live else None,
        )
        self.outgoing.add(movement)
        return movement

    def computed(self, movement: Movement, *, paused: bool) -> Sequence:
        """The engine has come so far with it: half of its prompt, or all of it."""
        phase = Phase.PAUSED if paused else Phase.PREFILL
        origin = Sequence(movement.request, 0, [1] if paused else [], 16 if paused else 8, phase)
        origin.blocks = [0, 1, 2, 3]
        seen = Snapshot((replace(origin),), origins=(origin,))
        self.outgoing.computed(movement, seen, paused)
        return origin

    def hear(self, movement: Movement, message: Any) -> None:
        header = encode(Envelope(message, movement.session, START))
        frame: Any = SimpleNamespace(header=header, payload=None)
        self.outgoing.frame(frame)

    @property
    def begun(self) -> list[str]:
        return [session for session, message in self.link.sent if isinstance(message, Reserve)]

    def said(self, movement: Movement) -> list[type]:
        return [type(message) for session, message in self.link.sent if session == movement.session]


def test_who_is_paused_gets_the_next_place_before_those_who_came_earlier() -> None:
    rig = Rig()
    first, second, third = (rig.add(name) for name in ("first", "second", "third"))
    rig.computed(first, paused=True)
    rig.computed(second, paused=False)
    rig.computed(third, paused=True)
    assert rig.begun == ["first"]
    rig.hear(first, Abort("another test"))
    assert rig.begun == ["first", "third"]
    rig.hear(third, Abort("another test"))
    assert rig.begun == ["first", "third", "second"]


def test_nobody_is_kept_paused_until_the_prompts_of_others_have_been_read() -> None:
    rig = Rig(most=2)
    reading = [rig.add("a"), rig.add("b")]
    late = rig.add("late")
    rig.computed(late, paused=False)
    assert late.source.state is SourceState.WAITING, "it is being read too"
    rig.computed(late, paused=True)
    assert late.source.state is SourceState.KEPT
    assert "raise transfer.max_sessions" in late.source.reason
    assert rig.ended == [late]
    assert [one.source.state for one in reading] == [SourceState.RESERVING] * 2


@pytest.mark.parametrize("live", [False, True], ids=["a prompt that has been read", "a migration"])
def test_who_is_paused_waits_a_bounded_time_for_those_who_leave_by_themselves(live: bool) -> None:
    rig = Rig(most=2)
    rig.add("reading")
    leaving, late = rig.add("leaving", live=live), rig.add("late")
    if not live:
        rig.computed(leaving, paused=True)
    rig.computed(late, paused=True)
    assert late.source.state is SourceState.WAITING
    assert rig.outgoing.wake < math.inf
    rig.hear(leaving, Abort("another test"))
    assert rig.begun[-1] == "late"


@pytest.mark.parametrize("moment", ["never", "before the copy", "in the copy"])
def test_a_choice_that_ended_before_its_blocks_were_read_is_not_committed(moment: str) -> None:
    rig = Rig()
    movement = rig.add("r")
    origin = rig.computed(movement, paused=True)

    def end() -> None:
        origin.become(Phase.FINISHED)

    if moment == "before the copy":
        end()
    elif moment == "in the copy":
        rig.store.before_gather = end
    rig.hear(movement, Reserved(0, 4))
    if moment == "never":
        assert rig.said(movement) == [Reserve, Copy, Commit]
        assert movement.source.state is SourceState.COMMITTING
    else:
        assert rig.said(movement) == [Reserve, Copy, Abort]
        assert (movement.source.state, movement.source.reason) == (SourceState.KEPT, TORN)


@pytest.mark.parametrize("damaged", [False, True])
def test_a_choice_that_ends_after_commit_matters_only_where_its_blocks_are_asked_for_again(
    damaged: bool,
) -> None:
    rig = Rig()
    movement = rig.add("r")
    origin = rig.computed(movement, paused=True)
    rig.hear(movement, Reserved(0, 4))
    origin.become(Phase.FINISHED)
    if damaged:
        rig.hear(movement, Resend(1))
        assert rig.said(movement) == [Reserve, Copy, Commit, Copy]
        assert (movement.source.state, rig.claimed) == (SourceState.DOUBT, [Epoch(0, 2)])
    else:
        rig.hear(movement, Committed())
        assert movement.source.state is SourceState.GIVEN
