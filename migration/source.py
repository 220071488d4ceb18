"""The half of a movement that has the request; the table of who owns what is in session.py."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from enum import Enum

from engine.sequence import Epoch
from migration.events import (
    Begin,
    Cancelled,
    Claim,
    Claimed,
    Dropped,
    Frozen,
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
from migration.messages import Abort, Commit, Committed, Copy, Refused, Renew, Reserve, Reserved

SourceStep = tuple["Source", tuple[SourceAction, ...]]


class SourceState(Enum):
    WAITING = "waiting"
    RESERVING = "reserving"
    COPYING = "copying"
    FROZEN = "frozen"
    COMMITTING = "committing"
    DOUBT = "in doubt"
    KEPT = "kept"
    GIVEN = "given"
    CANCELLED = "cancelled"
    UNHEARD = "unheard"


@dataclass(frozen=True, slots=True)
class Source:
    """The half that has the request. Immutable: `on` returns the next one and what to do, in order.

    Counts are in blocks of the session: the destination's cached prefix first, then every block once.
    `ready` are final, `sent` are there or on their way. `deadline` bounds the state, `again` is the
    time of the next RENEW or claim.
    """

    epoch: Epoch
    timeouts: Timeouts
    state: SourceState = SourceState.WAITING
    ready: int = 0
    sent: int = 0
    copying: bool = False
    deadline: float = math.inf
    again: float = math.inf
    reason: str = ""

    @property
    def ended(self) -> bool:
        return self.state in (
            SourceState.KEPT,
            SourceState.GIVEN,
            SourceState.CANCELLED,
            SourceState.UNHEARD,
        )

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
            case Dropped():
                return self._keep("the source dropped it", tell=True)
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

    def _waiting(self, event: SourceEvent, now: float) -> SourceStep:
        match event:
            case Begin(blocks):
                begun = replace(self, state=SourceState.RESERVING, deadline=now + self.timeouts.reserve)
                return begun, (Reserve(blocks),)
            case Frozen():
                return replace(self, deadline=min(self.deadline, now + self.timeouts.reserve)), ()
        return self, ()

    def _reserving(self, event: SourceEvent, now: float) -> SourceStep:
        if isinstance(event, Reserved):
            copying = replace(self, state=SourceState.COPYING, ready=event.cached, sent=event.cached)
            return copying._alive(now), ()
        return self, ()

    def _copying(self, event: SourceEvent, now: float) -> SourceStep:
        match event:
            case Progress(blocks):
                return replace(self, ready=max(self.ready, blocks))._next(now)
            case Frozen(blocks):
                return replace(self, state=SourceState.FROZEN, ready=max(self.ready, blocks))._next(now)
            case Sent() if self.copying:
                return replace(self, copying=False)._next(now)
        return self, ()

    def _next(self, now: float) -> SourceStep:
        """Copy what is ready; commit when that was all."""
        if self.copying:
            return self._alive(now), ()
        if self.ready > self.sent:
            copy = Copy(self.sent, self.ready - self.sent)
            return replace(self, sent=self.ready, copying=True)._alive(now), (copy,)
        if self.state is SourceState.FROZEN:
            deadline = now + self.timeouts.commit
            sent = replace(self, state=SourceState.COMMITTING, deadline=deadline, again=math.inf)
            return sent, (Commit(self.sent),)
        return self._alive(now), ()

    def _alive(self, now: float) -> Source:
        return replace(self, deadline=now + self.timeouts.stall, again=now + self.timeouts.renew)

    def _committing(self, event: SourceEvent, now: float) -> SourceStep:
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
        return self, ()

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
