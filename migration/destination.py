"""The half of a movement that takes the request over; the table of who owns what is in session.py."""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import Enum

from engine.sequence import Epoch
from migration.events import (
    Adopt,
    Adopted,
    Allocate,
    Allocated,
    Broken,
    Cancelled,
    Claim,
    Claimed,
    Damaged,
    Denied,
    DestinationAction,
    DestinationEvent,
    Drop,
    Free,
    Lost,
    Scatter,
    Tick,
    Timeouts,
)
from migration.messages import Abort, Commit, Committed, Copy, Refused, Renew, Resend, Reserve, Reserved
from migration.successor import replace

DestinationStep = tuple["Destination", tuple[DestinationAction, ...]]

LEASE_ENDED = "the lease ended"


class DestinationState(Enum):
    ASKING = "asking"
    ABANDONED = "abandoned"
    RESERVED = "reserved"
    CLAIMING = "claiming"
    ADOPTING = "adopting"
    ADOPTED = "adopted"
    CLOSED = "closed"


@dataclass(frozen=True)
class Destination:
    """The half that takes the request over. Immutable, as `Source`.

    `received` counts the blocks that are there, the cached prefix included; they come in order. `blocks`
    are reserved, or asked for; `kept` once there is a reservation. `damaged` counts the times that blocks
    were asked for again; while `resending`, what the source had sent before it heard of that is passed
    over.
    """

    epoch: Epoch
    timeouts: Timeouts
    blocks: int
    state: DestinationState = DestinationState.ASKING
    kept: bool = False
    received: int = 0
    damaged: int = 0
    resending: bool = False
    unwanted: bool = False
    deadline: float = math.inf
    again: float = math.inf
    reason: str = ""

    @classmethod
    def begin(cls, epoch: Epoch, timeouts: Timeouts, blocks: int) -> DestinationStep:
        """A RESERVE has come."""
        return cls(epoch, timeouts, blocks), (Allocate(blocks),)

    @property
    def ended(self) -> bool:
        return self.state in (DestinationState.ADOPTED, DestinationState.CLOSED)

    @property
    def expired(self) -> bool:
        """Whether it ended because nothing was heard of its source for a whole lease."""
        return self.state is DestinationState.CLOSED and self.reason == LEASE_ENDED

    @property
    def wake(self) -> float:
        """When a `Tick` is due."""
        return min(self.deadline, self.again)

    @property
    def taken_over(self) -> Epoch:
        """What the destination claims before it adopts."""
        return Epoch(self.epoch.attempt, self.epoch.move + 1)

    def on(self, event: DestinationEvent, now: float) -> DestinationStep:
        """`now` is in seconds on a monotonic clock."""
        match self.state:
            case DestinationState.ASKING | DestinationState.ABANDONED:
                return self._asking(event, now)
            case DestinationState.RESERVED:
                return self._reserved(event, now)
            case DestinationState.CLAIMING:
                return self._claiming(event, now)
            case DestinationState.ADOPTING:
                return self._adopting(event)
        return self, ()

    def _asking(self, event: DestinationEvent, now: float) -> DestinationStep:
        abandoned = self.state is DestinationState.ABANDONED
        match event:
            case Allocated() if abandoned:
                return self._close(self.reason)
            case Denied(reason):
                free = (Free(),) if self.kept else ()
                told = () if abandoned else (Refused("no room", reason),)
                reason = self.reason if abandoned else reason
                return replace(self, state=DestinationState.CLOSED, reason=reason), (*free, *told)
            case Allocated(cached):
                reserved = replace(
                    self,
                    state=DestinationState.RESERVED,
                    kept=True,
                    received=max(self.received, cached),
                    deadline=now + self.timeouts.lease,
                )
                return reserved, (Reserved(cached, self.blocks),)
            case Abort(reason) | Lost(reason):
                return replace(self, state=DestinationState.ABANDONED, reason=reason), ()
            case Cancelled():
                abandoned_now = replace(self, state=DestinationState.ABANDONED, reason="cancelled")
                return abandoned_now, (Abort("cancelled"),)
        return self, ()

    def _reserved(self, event: DestinationEvent, now: float) -> DestinationStep:
        alive = replace(self, deadline=now + self.timeouts.lease)
        match event:
            case Copy(first, count):
                return self._copied(first, count, alive)
            case Damaged():
                return self._hurt(alive)
            case Reserve(blocks) if blocks > self.blocks:
                asking = replace(self, state=DestinationState.ASKING, blocks=blocks, deadline=math.inf)
                return asking, (Allocate(blocks),)
            case Renew():
                return alive, ()
            case Commit(blocks) if blocks == self.received:
                return replace(alive, state=DestinationState.CLAIMING), (Claim(self.taken_over),)
            case Commit() if self.resending:
                return alive, ()
            case Commit(blocks):
                reason = f"{self.received} of {blocks} blocks have come"
                return self._close(reason, Refused("incomplete", reason))
            case Broken(reason):
                return self._close(reason, Abort(reason))
            case Cancelled():
                return self._close("cancelled", Abort("cancelled"))
            case Tick() if now >= self.deadline:
                return self._close(LEASE_ENDED, Abort(LEASE_ENDED))
            case Abort(reason) | Lost(reason):
                return self._close(reason)
        return self, ()

    def _copied(self, first: int, count: int, alive: Destination) -> DestinationStep:
        last = first + count
        if last <= self.received or (self.resending and first > self.received):
            return alive, ()
        if first == self.received and last <= self.blocks:
            return replace(alive, received=last, resending=False), (Scatter(first, count),)
        reason = f"blocks {first} to {last} came after {self.received} of {self.blocks}"
        return self._close(reason, Abort(reason))

    def _hurt(self, alive: Destination) -> DestinationStep:
        """A damaged chunk is asked for again, so often."""
        if self.damaged >= self.timeouts.resends:
            reason = f"blocks arrived damaged, {self.damaged} times after they had been sent again"
            return self._close(reason, Abort(reason))
        return replace(alive, damaged=self.damaged + 1, resending=True), (Resend(self.received),)

    def _claiming(self, event: DestinationEvent, now: float) -> DestinationStep:
        match event:
            case Claimed(True) if not self.unwanted:
                adopting = replace(self, state=DestinationState.ADOPTING, deadline=math.inf, again=math.inf)
                return adopting, (Adopt(self.taken_over),)
            case Claimed(True):
                return self._close("cancelled", Refused("cancelled", "nobody wants it", settled=False))
            case Claimed(False):
                reason = "the home gateway has given the request to another"
                return self._close(reason, Refused("fenced", reason, settled=False))
            case Claimed(None):
                return replace(self, again=now + self.timeouts.retry), ()
            case Tick() if now >= self.deadline:
                reason = "the home gateway does not answer"
                return self._close(reason, Refused("home", reason, settled=False))
            case Tick() if now >= self.again:
                return replace(self, again=math.inf), (Claim(self.taken_over),)
            case Abort() | Cancelled():
                return replace(self, unwanted=True), ()
        return self, ()

    def _adopting(self, event: DestinationEvent) -> DestinationStep:
        match event:
            case Adopted(True):
                return replace(self, state=DestinationState.ADOPTED), (Committed(),)
            case Adopted(False):
                reason = "the engine could not take the sequences over"
                return self._close(reason, Refused("engine", reason, settled=False))
            case Cancelled():
                return self, (Drop(),)
        return self, ()

    def _close(self, reason: str, *told: Refused | Abort) -> DestinationStep:
        return replace(self, state=DestinationState.CLOSED, reason=reason), (Free(), *told)
