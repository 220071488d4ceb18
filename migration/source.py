"""The half of a movement that has the request; the table of who owns what is in session.py."""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import Enum

from engine.sequence import Epoch
from migration.events import (
    Begin,
    Bounds,
    Cancelled,
    Claim,
    Claimed,
    Dropped,
    Freeze,
    Frozen,
    Look,
    Lost,
    Progress,
    Release,
    Resume,
    Sent,
    SourceAction,
    SourceEvent,
    Tick,
    Timeouts,
)
from migration.messages import Abort, Commit, Committed, Copy, Refused, Renew, Resend, Reserve, Reserved
from migration.successor import replace

SourceStep = tuple["Source", tuple[SourceAction, ...]]

TORN = "a choice ended while it was paused for the last copy"


class SourceState(Enum):
    WAITING = "waiting"
    RESERVING = "reserving"
    COPYING = "copying"
    FREEZING = "freezing"
    FROZEN = "frozen"
    COMMITTING = "committing"
    DOUBT = "in doubt"
    KEPT = "kept"
    GIVEN = "given"
    CANCELLED = "cancelled"
    UNHEARD = "unheard"


ENDED = frozenset({SourceState.KEPT, SourceState.GIVEN, SourceState.CANCELLED, SourceState.UNHEARD})


@dataclass(frozen=True)
class Source:
    """The half that has the request. Immutable: `on` returns the next one and what to do, in order.

    `live` bounds a live migration; None: a handoff, which the engine freezes itself.
    Counts are in blocks of the session: the destination's cached prefix first, then every block once.
    `ready` are final, `rest` more are being written, `sent` are there or on their way, `reserved` have
    room there, `asked` shall have (more than `reserved`: the answer is awaited). `again_from`: the blocks
    from there on arrived damaged. `stages` counts copies of a running request; the `last` one had so
    many blocks, began at `since`, and took `pace` seconds a block. `deadline` bounds the state, `again`
    is the time of the next RENEW or claim.
    """

    epoch: Epoch
    timeouts: Timeouts
    live: Bounds | None = None
    state: SourceState = SourceState.WAITING
    ready: int = 0
    rest: int = 0
    sent: int = 0
    reserved: int = 0
    asked: int = 0
    copying: bool = False
    looking: bool = False
    due: bool = False
    again_from: int | None = None
    stages: int = 0
    last: int = 0
    since: float = 0.0
    pace: float = math.inf
    deadline: float = math.inf
    again: float = math.inf
    reason: str = ""

    @property
    def ended(self) -> bool:
        return self.state in ENDED

    @property
    def wake(self) -> float:
        """When a `Tick` is due."""
        return min(self.deadline, self.again)

    @property
    def taken_back(self) -> Epoch:
        """What the source claims when it does not know how its COMMIT ended."""
        return Epoch(self.epoch.attempt, self.epoch.move + 2)

    def on(self, event: SourceEvent, now: float) -> SourceStep:
        """`now` is in seconds on a monotonic clock."""
        if self.ended:
            return self, ()
        if isinstance(event, Cancelled):
            return self._cancelled()
        match self.state:
            case SourceState.COMMITTING:
                return self._committing(event, now)
            case SourceState.DOUBT:
                return self._in_doubt(event, now)
        match event:
            case Dropped(reason):
                return self._keep(reason, tell=True)
            case Lost(reason):
                return self._keep(reason)
            case Refused(code, reason):
                return self._keep(f"{code}: {reason}")
            case Abort(reason):
                return self._keep(f"aborted by the destination: {reason}")
            case Tick() if now >= self.deadline:
                return self._keep(f"timeout while {self.state.value}", tell=True)
            case Tick() if now >= self.again:
                return replace(self, again=now + self.timeouts.renew), (Renew(),)
        if self.state is SourceState.WAITING:
            return self._waiting(event, now)
        if self.state is SourceState.RESERVING:
            return self._reserving(event, now)
        return self._copying(event, now)

    def decide(self, event: SourceEvent, now: float, *, torn: bool) -> SourceStep:
        """As `on`, but what is `torn` is not committed: a choice has ended since the request was paused, and
        its blocks, which are copied still, may be another's."""
        after, actions = self.on(event, now)
        if torn and any(isinstance(action, Commit) for action in actions):
            return self.on(Dropped(TORN), now)
        return after, actions

    def _waiting(self, event: SourceEvent, now: float) -> SourceStep:
        match event:
            case Begin(blocks):
                deadline = now + self.timeouts.reserve
                begun = replace(self, state=SourceState.RESERVING, asked=blocks, deadline=deadline)
                return begun, (Reserve(blocks, self.live is not None),)
            case Frozen():
                return replace(self, deadline=min(self.deadline, now + self.timeouts.reserve)), ()
        return self, ()

    def _reserving(self, event: SourceEvent, now: float) -> SourceStep:
        if not isinstance(event, Reserved):
            return self, ()
        cached, blocks = event.cached, event.blocks
        copying = replace(
            self, state=SourceState.COPYING, ready=cached, sent=cached, reserved=blocks, asked=blocks
        )
        if self.live is None:
            return copying._alive(now), ()
        if blocks - cached < self.live.last_blocks:
            return copying._freeze(now)
        return copying._next(now)

    def _copying(self, event: SourceEvent, now: float) -> SourceStep:
        match event:
            case Progress(blocks, rest):
                seen = replace(self, ready=max(self.ready, blocks), rest=rest, looking=False, due=True)
                return seen._next(now)
            case Frozen(blocks):
                ready = max(self.ready, blocks)
                return replace(self, state=SourceState.FROZEN, ready=ready, rest=0)._next(now)
            case Reserved(_, blocks) if self.reserved < self.asked <= blocks:
                return replace(self, reserved=blocks)._next(now)
            case Resend(first) if first < self.sent:
                return self._damaged(first)._next(now)
            case Sent() if self.copying:
                return self._arrived(now)._next(now)
        return self, ()

    def _next(self, now: float) -> SourceStep:
        """Whatever is to be done now: copy what is ready, look for more, freeze, or commit."""
        if self.copying or self.reserved < self.asked:
            return self._alive(now), ()
        if self.again_from is not None:
            copy = Copy(self.again_from, self.sent - self.again_from)
            return replace(self, copying=True, again_from=None)._alive(now), (copy,)
        if self.state is SourceState.COPYING and self.live is not None:
            return self._stage(self.live, now)
        if self.ready > self.sent:
            return self._copy(now)
        if self.state is SourceState.FROZEN:
            deadline = now + self.timeouts.commit
            sent = replace(self, state=SourceState.COMMITTING, deadline=deadline, again=math.inf)
            return sent, (Commit(self.sent),)
        return self._alive(now), ()

    def _stage(self, live: Bounds, now: float) -> SourceStep:
        """Between two copies of a request that runs: one more, the last one, or not worth going on."""
        if not self.due:
            looks = () if self.looking else (Look(),)
            return replace(self, looking=True)._alive(now), looks
        left = self.ready - self.sent
        pause = (left + self.rest) * self.pace
        if left < live.last_blocks or pause <= live.pause:
            return self._freeze(now)
        if self.stages >= live.stages:
            return self._keep(f"{left} blocks behind after {self.stages} live stages", tell=True)
        return replace(self, due=False)._copy(now, live.last_blocks)

    def _copy(self, now: float, margin: int = 0) -> SourceStep:
        """Send what is ready. Where it has outgrown its reservation, that comes first."""
        if self.ready > self.reserved:
            wanted = self.ready + self.rest + margin
            grown = replace(self, asked=wanted, due=True)._alive(now)
            deadline = now + self.timeouts.reserve
            return replace(grown, deadline=deadline), (Reserve(wanted, self.live is not None),)
        copy = Copy(self.sent, self.ready - self.sent)
        stages = self.stages + (self.state is SourceState.COPYING)
        copied = replace(
            self, sent=self.ready, copying=True, since=now, stages=stages, last=self.ready - self.sent
        )
        return copied._alive(now), (copy,)

    def _arrived(self, now: float) -> Source:
        """A copy has left."""
        pace = (now - self.since) / self.last if self.last else self.pace
        return replace(self, copying=False, pace=pace, last=0)

    def _freeze(self, now: float) -> SourceStep:
        return replace(self, state=SourceState.FREEZING, due=False)._alive(now), (Freeze(),)

    def _alive(self, now: float) -> Source:
        return replace(self, deadline=now + self.timeouts.stall, again=now + self.timeouts.renew)

    def _damaged(self, first: int) -> Source:
        known = self.sent if self.again_from is None else self.again_from
        return replace(self, again_from=min(known, first))

    def _committing(self, event: SourceEvent, now: float) -> SourceStep:
        """COMMIT may have been heard: whatever comes, this half does not go on without the home's word."""
        match event:
            case Committed():
                return replace(self, state=SourceState.GIVEN), (Release(),)
            case Refused(code, reason, True):
                return self._keep(f"{code}: {reason}")
            case Abort(reason):
                return self._keep(f"aborted by the destination: {reason}")
            case Refused(code, reason):
                return self._doubt(f"{code}: {reason}", now)
            case Lost(reason):
                return self._doubt(reason, now)
            case Tick() if now >= self.deadline:
                return self._doubt("no answer to COMMIT", now)
            case Resend(first) if first < self.sent:
                return self._damaged(first)._commit_again(now)
            case Sent() if self.copying:
                return replace(self, copying=False)._commit_again(now)
            case Dropped(reason) if self.copying:  # what was damaged cannot be sent again any more
                return self._doubt(reason, now)
        return self, ()

    def _commit_again(self, now: float) -> SourceStep:
        if self.copying:
            return self, ()
        waits = replace(self, deadline=now + self.timeouts.commit)
        if self.again_from is None:
            return waits, (Commit(self.sent),)
        copy = Copy(self.again_from, self.sent - self.again_from)
        return replace(waits, copying=True, again_from=None), (copy,)

    def _doubt(self, reason: str, now: float) -> SourceStep:
        bound = now + self.timeouts.lease
        doubt = replace(self, state=SourceState.DOUBT, deadline=bound, again=math.inf, reason=reason)
        return doubt, (Claim(self.taken_back),)

    def _in_doubt(self, event: SourceEvent, now: float) -> SourceStep:
        """Only the home's answer counts: a late COMMITTED may come from an end that our claim has fenced."""
        match event:
            case Claimed(True):
                return replace(self, state=SourceState.KEPT), (Resume(self.taken_back),)
            case Claimed(False):
                return replace(self, state=SourceState.GIVEN), (Release(),)
            case Claimed(None):
                return replace(self, again=now + self.timeouts.retry), ()
            case Tick() if now >= self.deadline:
                return replace(self, state=SourceState.UNHEARD), (Release(),)
            case Tick() if now >= self.again:
                return replace(self, again=math.inf), (Claim(self.taken_back),)
        return self, ()

    def _keep(self, reason: str, *, tell: bool = False) -> SourceStep:
        told = (Abort(reason),) if tell and self.state is not SourceState.WAITING else ()
        return replace(self, state=SourceState.KEPT, reason=reason), (*told, Resume(self.epoch))

    def _cancelled(self) -> SourceStep:
        told = (Abort("cancelled"),) if self.state is not SourceState.WAITING else ()
        return replace(self, state=SourceState.CANCELLED, reason="cancelled"), told
