"""Measures what it costs to hand a prompt over while it is read, and shows that its copies go on beside it.

The first token is drawn where the prompt is read: a handoff costs what its copies take from the chunks that
are computed meanwhile. The second token comes from the destination.

    handed, stays │ stays, handed │ handed, stays │ …      pairs

What disturbs the machine for longer than a request disturbs both of a pair alike, and neither way comes first
more often. CPU time is counted beside the clock: other processes on the machine hardly change that.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from cluster.bench.ends import PATIENCE, End, Stopwatch
from cluster.bench.load import Advance
from cluster.bench.statistics import Estimate, Spread, Value
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

    Of each pair: `cost` is what the handoff adds to TTFT, as a share of it, `work` what it adds to the CPU
    time of this process, both engines, until the first token. `copying` is how long sending and receiving
    took until then; `second` the time from the first token to the second. `beside` is the share of all
    sending and receiving that went on while the source computed the prompt, in the request that the
    `timeline` is of.
    """

    prompt: int
    colocated: Spread
    handed: Spread
    cost: Estimate
    work: Estimate
    copying: Spread
    second_colocated: Spread
    second_handed: Spread
    beside: float
    timeline: tuple[Span, ...]


@dataclass(frozen=True, slots=True)
class _Round:
    """One request: seconds to its first token, CPU seconds until then, seconds from there to its second."""

    first: float
    work: float
    second: float
    spans: tuple[Span, ...]

    @property
    def copying(self) -> float:
        """Seconds of sending and receiving before the first token."""
        copies = [span for span in self.spans if not span.what.endswith("computes")]
        return sum(max(0.0, min(span.end, self.first) - span.begin) for span in copies)


def hand_over(
    source: End,
    destination: End,
    sender: Sender,
    address: Address,
    watch: Stopwatch,
    ask: Callable[[], Request],
    pairs: int,
    advance: Advance,
) -> Handoff:
    """Pairs of requests of `ask`, one that stays at the source and one that is handed over to `address`."""

    def one(elsewhere: bool) -> _Round:
        for end in (source, destination):
            end.diary.on, end.diary.notes = True, []
        return _run(ask(), source, destination, sender, address if elsewhere else None, watch)

    # Whatever is done for the first time takes longer.
    prompt = len(ask().prompt)
    for elsewhere in (False, True):
        one(elsewhere)
    stayed: list[_Round] = []
    went: list[_Round] = []
    for pair in range(pairs):
        for elsewhere in (False, True) if pair % 2 else (True, False):
            (went if elsewhere else stayed).append(one(elsewhere))
        advance(pair + 1, pairs)
    both = list(zip(stayed, went, strict=True))
    return Handoff(
        prompt=prompt,
        colocated=Spread.of([here.first for here in stayed]),
        handed=Spread.of([there.first for there in went]),
        cost=Estimate.of([there.first / here.first - 1 for here, there in both]),
        work=Estimate.of([there.work / here.work - 1 for here, there in both]),
        copying=Spread.of([there.copying for there in went]),
        second_colocated=Spread.of([here.second for here in stayed]),
        second_handed=Spread.of([there.second for there in went]),
        beside=beside(went[-1].spans, source.name),
        timeline=went[-1].spans,
    )


def _run(
    request: Request,
    source: End,
    destination: End,
    sender: Sender,
    address: Address | None,
    watch: Stopwatch,
) -> _Round:
    """Returns when it has ended."""

    def enter(core: EngineCore) -> None:
        core.submit(request, handoff=address is not None)
        if address is not None:
            sender.hand_off(request, address, epoch=START, home="")

    begun, work = time.monotonic(), time.process_time()
    source.loop.call(enter).result(PATIENCE)
    watch.wait(request.id, source.name, 1)
    work = time.process_time() - work
    where = source if address is None else destination
    watch.wait(request.id, where.name, HANDED if address is None else HANDED - 1)
    (first, _, _), (second, _, _) = watch.tokens.pop(request.id)[:2]
    notes = sorted(source.diary.notes + destination.diary.notes, key=lambda note: note[1])
    spans = tuple(Span(what=w, begin=b - begun, end=e - begun, size=n) for w, b, e, n in notes)
    return _Round(first - begun, work, second - first, spans)


def beside(timeline: Sequence[Span], computing: str) -> float:
    """The share of sending and receiving that happens while `computing` computes; 0 if nothing is sent."""
    steps = [span for span in timeline if span.what == f"{computing} computes" and span.size > 1]
    copies = [span for span in timeline if not span.what.endswith("computes")]
    total = sum(copy.end - copy.begin for copy in copies)
    within = sum(
        max(0.0, min(copy.end, step.end) - max(copy.begin, step.begin)) for copy in copies for step in steps
    )
    return within / total if total else 0.0
