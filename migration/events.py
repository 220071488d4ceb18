"""What happens to one half of a movement, and what it wants done, beside the messages between the halves."""

from __future__ import annotations

from dataclasses import dataclass

from engine.sequence import Epoch
from migration.messages import (
    Abort,
    Commit,
    Committed,
    Copy,
    FromDestination,
    FromSource,
    Refused,
    Renew,
    Reserve,
    Reserved,
)


@dataclass(frozen=True, slots=True)
class Timeouts:
    """Bounds in seconds. Every wait of a session ends at one of them.

    reserve: an answer to RESERVE, or a place among the sessions once the prompt is done; chunk: one
    COPY on the link; commit: an answer to COMMIT; lease: how long a reservation, or a claim without an
    answer, outlives the last sign of life; stall: no chunk finished at the source; retry: between claims.
    """

    reserve: float = 5.0
    chunk: float = 10.0
    commit: float = 5.0
    lease: float = 30.0
    stall: float = 300.0
    retry: float = 0.25

    @property
    def renew(self) -> float:
        return self.lease / 3


# Events of both halves.
@dataclass(frozen=True, slots=True)
class Claimed:
    """The home's answer to `Claim`; None: it gave none."""

    granted: bool | None


@dataclass(frozen=True, slots=True)
class Cancelled:
    """Nobody wants more of the request."""


@dataclass(frozen=True, slots=True)
class Lost:
    """The link is gone."""

    reason: str


@dataclass(frozen=True, slots=True)
class Tick:
    """Time has passed."""


# Events of the source.
@dataclass(frozen=True, slots=True)
class Begin:
    """There is a place among the sessions. `blocks` is what to reserve."""

    blocks: int


@dataclass(frozen=True, slots=True)
class Progress:
    """The session's first `blocks` blocks are final."""

    blocks: int


@dataclass(frozen=True, slots=True)
class Frozen:
    """The sequences are paused; the session has `blocks` blocks, all final."""

    blocks: int


@dataclass(frozen=True, slots=True)
class Sent:
    """The blocks of the last `Copy` have left."""


@dataclass(frozen=True, slots=True)
class Dropped:
    """The KV here may not be counted on any more: preempted, failed or finished."""


# Events of the destination.
@dataclass(frozen=True, slots=True)
class Allocated:
    """The engine keeps the blocks; the first `cached` of them hold the prompt's prefix already."""

    cached: int


@dataclass(frozen=True, slots=True)
class Denied:
    """The engine has no room."""

    reason: str


@dataclass(frozen=True, slots=True)
class Broken:
    """A message could not be taken in: damaged, of the wrong size, or not this session's turn."""

    reason: str


@dataclass(frozen=True, slots=True)
class Adopted:
    """The engine's answer to `Adopt`."""

    taken: bool


# Actions of both halves.
@dataclass(frozen=True, slots=True)
class Claim:
    """Ask the home for this epoch; the answer is `Claimed`."""

    epoch: Epoch


# Actions of the source. A `Copy` among them is also done here: gather, send, then `Sent`.
@dataclass(frozen=True, slots=True)
class Resume:
    """Let the sequences run on here, under this epoch."""

    epoch: Epoch


@dataclass(frozen=True, slots=True)
class Release:
    """Free the sequences' blocks without a word to the home."""


# Actions of the destination.
@dataclass(frozen=True, slots=True)
class Allocate:
    """Ask the engine for this many blocks; the answer is `Allocated` or `Denied`."""

    blocks: int


@dataclass(frozen=True, slots=True)
class Scatter:
    """Put the payload in hand into blocks [first, first + count) of the session."""

    first: int
    count: int


@dataclass(frozen=True, slots=True)
class Adopt:
    """Let the sequences run here, under this epoch; the answer is `Adopted`."""

    epoch: Epoch


@dataclass(frozen=True, slots=True)
class Free:
    """Give the reservation back to the engine."""


@dataclass(frozen=True, slots=True)
class Drop:
    """Cancel the request that the engine is just adopting."""


SourceEvent = Begin | Progress | Frozen | Sent | Dropped | Claimed | Cancelled | Lost | Tick | FromDestination
SourceAction = Reserve | Copy | Commit | Abort | Renew | Claim | Resume | Release
DestinationEvent = Allocated | Denied | Broken | Adopted | Claimed | Cancelled | Lost | Tick | FromSource
DestinationAction = Reserved | Refused | Committed | Abort | Allocate | Scatter | Claim | Adopt | Free | Drop
