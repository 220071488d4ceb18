"""The half of a movement that takes the request over; the table of who owns what is in session.py."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
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
from migration.messages import Abort, Commit, Committed, Copy, Refused, Renew, Reserved

DestinationStep = tuple["Destination", tuple[DestinationAction, ...]]


class DestinationState(Enum):
    ASKING = "asking"
    ABANDONED = "abandoned"
    RESERVED = "reserved"
    CLAIMING = "claiming"
    ADOPTING = "adopting"
    ADOPTED = "adopted"
    CLOSED = "closed"


@dataclass(frozen=True, slots=True)
class Destination:
    """The half that takes the request over. Immutable, as `Source`.

    `received` counts the blocks that are there, the cached prefix included; they come in order.
    """

    epoch: Epoch
    timeouts: Timeouts
    blocks: int
    state: DestinationState = DestinationState.ASKING
    received: int = 0
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
            case Denied(reason) if abandoned:
                return replace(self, state=DestinationState.CLOSED), ()
            case Allocated(cached):
                lease = now + self.timeouts.lease
                reserved = replace(self, state=DestinationState.RESERVED, received=cached, deadline=lease)
                return reserved, (Reserved(cached),)
            case Denied(reason):
                denied = replace(self, state=DestinationState.CLOSED, reason=reason)
                return denied, (Refused("no room", reason),)
            case Abort(reason) | Lost(reason):
                return replace(self, state=DestinationState.ABANDONED, reason=reason), ()
            case Cancelled():
                abandoned_now = replace(self, state=DestinationState.ABANDONED, reason="cancelled")
                return abandoned_now, (Abort("cancelled"),)
        return self, ()

    def _reserved(self, event: DestinationEvent, now: float) -> DestinationStep:
        lease = now + self.timeouts.lease
        match event:
            case Copy(first, count) if first + count <= self.received:
                return replace(self, deadline=lease), ()
            case Copy(first, count) if first == self.received and first + count <= self.blocks:
                received = replace(self, received=first + count, deadline=lease)
                return received, (Scatter(first, count),)
            case Copy(first, count):
                reason = f"blocks {first} to {first + count} came after {self.received} of {self.blocks}"
                return self._close(reason, Abort(reason))
            case Renew():
                return replace(self, deadline=lease), ()
            case Commit(blocks) if blocks == self.received:
                claiming = replace(self, state=DestinationState.CLAIMING, deadline=lease)
                return claiming, (Claim(self.taken_over),)
            case Commit(blocks):
                reason = f"{self.received} of {blocks} blocks have come"
                return self._close(reason, Refused("incomplete", reason))
            case Broken(reason):
                return self._close(reason, Abort(reason))
            case Cancelled():
                return self._close("cancelled", Abort("cancelled"))
            case Tick() if now >= self.deadline:
                return self._close("the lease ended", Abort("the lease ended"))
            case Abort(reason) | Lost(reason):
                return self._close(reason)
        return self, ()

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
