"""What a step came to: the tokens that were drawn, and what movements have to know."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from engine.plan import Drawn
from engine.sequence import Epoch, FinishReason, Sequence, SequenceKey


class Emitted(NamedTuple):
    """A token that was drawn or, with `drawn` None, an end without one.

    `index` is the token's place in the output. `finish` is set with the choice's last, `stop_token`
    when a token of the request's own stop list ended it. `cached` counts prompt tokens that the
    prefix cache spared; `queued` and `prefilled` are seconds spent waiting and prefilling here.
    `sequence` is the choice itself: a sink reads its request and, below `index`, its output, which
    only grows.
    """

    key: SequenceKey
    sequence: Sequence
    epoch: Epoch
    home: str
    index: int  # type: ignore[assignment]
    drawn: Drawn | None
    finish: FinishReason | None
    stop_token: int | None
    cached: int
    queued: float
    prefilled: float


@dataclass(frozen=True, slots=True)
class StepOutcome:
    """`emitted` goes to the gateways; the rest is for movements.

    `progress` has (request id, computed tokens) for each prefill chunk of a request that is still
    one sequence. `prefilled` names the handoff requests that have their first tokens and are PAUSED.
    `dropped` names the requests whose KV here may not be counted on any more: one of their sequences
    was preempted, or the last one ended without a `release`.
    """

    emitted: tuple[Emitted, ...] = ()
    progress: tuple[tuple[str, int], ...] = ()
    prefilled: tuple[str, ...] = ()
    dropped: tuple[str, ...] = ()
