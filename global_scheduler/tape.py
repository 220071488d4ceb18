"""Everything that the scheduler's decisions depend on, in the order in which it came, and the decisions."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from engine.status import InstanceStatus
from global_scheduler.view import Share, Summary


@dataclass(frozen=True, slots=True)
class Heard:
    """A status that was asked for at `taken`."""

    taken: float
    status: InstanceStatus


@dataclass(frozen=True, slots=True)
class Cordoned:
    instance: str
    on: bool


@dataclass(frozen=True, slots=True)
class Forgotten:
    instance: str


@dataclass(frozen=True, slots=True)
class Sent:
    """Somebody else decided that a request goes somewhere, such as a migration."""

    now: float
    request_id: str
    shares: Mapping[str, Share]


@dataclass(frozen=True, slots=True)
class Decided:
    """What a request was told: two instances, or the code of the error that refused it. With the reason."""

    now: float
    summary: Summary
    prefill: str
    decode: str
    refused: str
    reason: str


Input = Heard | Cordoned | Forgotten | Sent | Decided
"""Times are in seconds on the scheduler's clock."""
