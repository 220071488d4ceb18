"""Measures what it costs to hand a prompt over while it is read, and shows that its copies go on beside it.

The first token is drawn where the prompt is read: a handoff costs what its copies take from the chunks that
are computed meanwhile. The second token comes from the destination.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from statistics import median

from cluster.bench.ends import PATIENCE, End, Stopwatch
from cluster.bench.load import Advance
from cluster.bench.statistics import Spread, Value
from engine.core import EngineCore
from engine.request import Request
from engine.sequence import START
from migration.sender import Sender
from migration.transport import Address

HANDED = 8
"""Tokens that are drawn of each request."""


class Span(Value):
    """Something that took from `begin` to `end`, seconds after the request was asked; `size` in tokens where
    one computes, in blocks where one sends or receives."""

    what: str
    begin: float
    end: float
    size: int


class Handoff(Value):
    """TTFT of prompts of so many tokens, read where they decode and handed over; seconds.

    `cost` is the median over pairs of what the handoff adds to TTFT, as a share of it; `second` the time from
    the first token to the second, with and without. `beside` is the share of all sending and receiving that
    went on while the source computed the prompt, in the request that the `timeline` is of.
    """

    prompt: int
    colocated: Spread
    handed: Spread
    cost: float
    second_colocated: Spread
    second_handed: Spread
    beside: float
    timeline: tuple[Span, ...]


def hand_over(
    source: End,
    destination: End,
    sender: Sender,
    address: Address,
    watch: Stopwatch,
    ask: Callable[[], Request],
    repetitions: int,
    advance: Advance,
) -> Handoff:
    """Requests of `ask` in turn, one that stays at the source and one that is handed over to `address`."""
    stayed: list[tuple[float, float]] = []
    went: list[tuple[float, float]] = []
    timeline: list[Span] = []
    for repetition in range(repetitions):
        # Each is the first of a pair as often as the second.
        for elsewhere in (False, True) if repetition % 2 else (True, False):
            for end in (source, destination):
                end.diary.on, end.diary.notes = True, []
            request = ask()
            begun = time.monotonic()
            first, second = _run(request, source, destination if elsewhere else None, sender, address, watch)
            (went if elsewhere else stayed).append((first - begun, second - first))
            if elsewhere:
                notes = sorted(source.diary.notes + destination.diary.notes, key=lambda note: note[1])
                timeline = [Span(what=w, begin=b - begun, end=e - begun, size=n) for w, b, e, n in notes]
        advance(repetition + 1, repetitions)
    pairs = zip(stayed, went, strict=True)
    return Handoff(
        prompt=len(request.prompt),
        colocated=Spread.of([first for first, _ in stayed]),
        handed=Spread.of([first for first, _ in went]),
        cost=median(there[0] / here[0] - 1 for here, there in pairs),
        second_colocated=Spread.of([second for _, second in stayed]),
        second_handed=Spread.of([second for _, second in went]),
        beside=beside(timeline, source.name),
        timeline=tuple(timeline),
    )


def _run(
    request: Request, source: End, destination: End | None, sender: Sender, address: Address, watch: Stopwatch
) -> tuple[float, float]:
    """When its first and its second token came. Returns when it has ended."""

    def enter(core: EngineCore) -> None:
        core.submit(request, handoff=destination is not None)
        if destination is not None:
            sender.hand_off(request, address, epoch=START, home="")

    source.loop.call(enter).result(PATIENCE)
    watch.wait(request.id, source.name, 1)
    where = source if destination is None else destination
    watch.wait(request.id, where.name, HANDED if destination is None else HANDED - 1)
    heard = watch.tokens.pop(request.id)
    return heard[0][0], heard[1][0]


def beside(timeline: Sequence[Span], computing: str) -> float:
    """The share of sending and receiving that happens while `computing` computes; 0 if nothing is sent."""
    steps = [span for span in timeline if span.what == f"{computing} computes" and span.size > 1]
    copies = [span for span in timeline if not span.what.endswith("computes")]
    total = sum(copy.end - copy.begin for copy in copies)
    within = sum(
        max(0.0, min(copy.end, step.end) - max(copy.begin, step.begin)) for copy in copies for step in steps
    )
    return within / total if total else 0.0
