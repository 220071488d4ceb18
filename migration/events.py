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
    Resend,
    Reserve,
    Reserved,
)


@dataclass(frozen=True, slots=True)
class Timeouts:
    """Bounds in seconds. Every wait of a session ends at one of them.

    reserve: an answer to RESERVE, or a place among the sessions once the prompt is done; chunk: one
    COPY on the link; commit: an answer to COMMIT; lease: how long a reservation, or a claim without an
    answer, outlives the last sign of life; stall: no chunk finished at the source; retry: between claims.
    `resends` counts the times that damaged chunks are asked for again.
    """

    reserve: float = 5.0
    chunk: float = 10.0
    commit: float = 5.0
    lease: float = 30.0
    stall: float = 300.0
    retry: float = 0.25
    resends: int = 2

    @property
    def renew(self) -> float:
        return self.lease / 3


@dataclass(frozen=True, slots=True)
class Bounds:
    """Bounds of live migration.

    stages: copies while the request runs; last_blocks: a request pauses for its last copy when fewer
    full blocks than this remain, or when `pause` seconds are predicted to be enough; moves, tokens: what
    may be on the way out of an instance at once; share: of a pool that arrivals may have reserved.
    Stages and last blocks are those of Llumnix's artifact (OSDI'24).
    """

    stages: int = 3
    last_blocks: int = 16
    pause: float = 0.02
    moves: int = 4
    tokens: int = 65_536
    share: float = 0.5


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
    """The session's first `blocks` blocks are final; `rest` more are being written.

    Of a handoff after each chunk, of a live migration in answer to `Look`.
    """

    blocks: int
    rest: int = 0


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

    reason: str = "it was preempted, or a stop string ended it"


# Events of the destination.
@dataclass(frozen=True, slots=True)
class Damaged:
    """A chunk's payload was not what had been sent."""


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
    """A message could not be taken in: of the wrong size, or not this session's turn."""

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
class Look:
    """See how far a running request has come; the answer is `Progress`, or `Dropped` if it is gone."""


@dataclass(frozen=True, slots=True)
class Freeze:
    """Pause a running request between two steps; the answer is `Frozen`, or `Dropped` if it is gone."""


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
    """Ask the engine for this many blocks in all; the answer is `Allocated` or `Denied`."""

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
SourceAction = Reserve | Copy | Commit | Abort | Renew | Look | Freeze | Claim | Resume | Release
DestinationEvent = (
    Allocated | Denied | Damaged | Broken | Adopted | Claimed | Cancelled | Lost | Tick | FromSource
)
DestinationAction = (
    Reserved | Resend | Refused | Committed | Abort | Allocate | Scatter | Claim | Adopt | Free | Drop
)
