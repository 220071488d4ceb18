"""Where the time of one request goes, as its gateway sees it: phases that follow on one another without gap.

    admit ─ place ─ queue ─ prefill ─ handoff ─ decode ─ respond        handoff only where another one decodes
                      ▲                            │ ▲
                      └──── place ── recover ◀─────┤ └─ migrate ─┐      the pause of a live migration
                                                   └─────────────┘

What happens at an instance is told with the first token, as durations: clocks of other machines don't matter.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from cluster import control_pb2 as pb

MOST_PHASES = 64
"""Of one request; what comes after is added to the last, so that the memory of a request is bounded."""

MOST_CHUNKS = 64

ADMIT, PLACE, QUEUE, PREFILL = "admit", "place", "queue", "prefill"
HANDOFF, DECODE, MIGRATE, RECOVER, RESPOND = "handoff", "decode", "migrate", "recover", "respond"


@dataclass(slots=True)
class Phase:
    """Times in seconds on the gateway's monotonic clock; `end` is None while it lasts."""

    name: str
    start: float
    end: float | None = None
    instance: str = ""
    reason: str = ""
    tokens: int = 0
    chunks: list[tuple[int, float]] = field(default_factory=list)
    """Of a prefill: tokens of each chunk, and when it was done."""


class Timeline:
    """Told by the request's Run what happens. `now` is monotonic; `began` when the client's request came."""

    def __init__(
        self, id: str, *, tenant: str, trace: str, prompt_tokens: int, began: float, now: float
    ) -> None:
        self.id = id
        self.tenant = tenant
        self.trace = trace
        self.prompt_tokens = prompt_tokens
        self.began = began
        self.cached = 0
        self.output_tokens = 0
        self.outcome = ""
        self.detail = ""
        self.ttft: float | None = None
        self.tpot: float | None = None
        self.over = False
        self.phases = [Phase(ADMIT, began)]
        self._decode = ""
        self.asked: dict[str, Any] = {}
        self._left = False
        self._trouble = ""
        self._last = now
        self._next(PLACE, now)

    @property
    def current(self) -> Phase:
        return self.phases[-1]

    @property
    def ended(self) -> float | None:
        """When the last phase ended; None while the request is under way."""
        return self.current.end if self.over else None

    def placing(self, now: float) -> None:
        """It is to be placed, for the first time or again."""
        if self.current.name == PLACE:
            return
        if self.current.name in (DECODE, HANDOFF):
            # Since its last token nothing came of it any more.
            self._next(RECOVER, max(self.current.start, min(self._last, now)), reason=self._trouble)
        self._next(PLACE, now, reason=self._trouble)

    def trouble(self, reason: str) -> None:
        """Why it will have to be placed again, if it has to."""
        self._trouble = reason

    def placed(self, prefill: str, decode: str, reason: str, now: float) -> None:
        self._decode = decode
        self.current.reason = "; ".join(filter(None, (self.current.reason, reason)))
        self._next(QUEUE, now, prefill)

    def resumed(self, instance: str, now: float) -> None:
        """It was taken over from another gateway while it runs."""
        self._next(DECODE, now, instance, "taken over from another gateway")

    def tokens(self, instance: str, message: pb.Tokens, count: int, now: float) -> None:
        """So many tokens came from an instance."""
        if self.current.name in (QUEUE, PLACE):
            self._first(instance, message, now)
        elif self.current.name == HANDOFF and message.index > 0:
            # It goes on without a claim only where it was: the handoff came to nothing.
            self.current.reason = f"it stayed at {instance}"
            self._next(DECODE, now, instance)
        self.current.tokens += count
        self.output_tokens += count
        self._last = now

    def moved(self, instance: str, now: float) -> None:
        """Another instance has the request from now on."""
        current = self.current
        if current.name == HANDOFF:
            current.reason = f"{current.instance} to {instance}"
            self._next(DECODE, now, instance)
        elif current.name == DECODE and current.instance != instance:
            before = current.instance
            self._next(MIGRATE, max(current.start, min(self._last, now)), instance, f"{before} to {instance}")
            self._next(DECODE, now, instance)
        elif current.name == QUEUE and current.instance != instance:
            self._next(QUEUE, now, instance, f"moved from {current.instance} before its first token")

    def finish(self, outcome: str, detail: str, now: float) -> None:
        """The last token has come, or none will."""
        self.outcome, self.detail = outcome, detail
        self._next(RESPOND, now)
        if self._left:
            self.answered(now)

    def spent(self, *names: str) -> float:
        """Seconds in phases of these names that are over."""
        return sum(one.end - one.start for one in self.phases if one.name in names and one.end is not None)

    def answered(self, now: float) -> None:
        """The client has its answer, or has left; a request that goes on without it ends when it ends."""
        self._left = True
        if self.current.name == RESPOND and not self.over:
            self.current.end = now
            self.over = True

    def message(self, gateway: str, now: float, offset: float) -> pb.Timeline:
        """As others see it; `offset` is what the monotonic clock is behind unix time."""
        end = self.ended
        message = pb.Timeline(
            id=self.id,
            trace_id=self.trace,
            tenant=self.tenant,
            gateway=gateway,
            began=self.began + offset,
            seconds=(now if end is None else end) - self.began,
            running=not self.outcome,
            outcome=self.outcome,
            detail=self.detail,
            prompt_tokens=self.prompt_tokens,
            cached_tokens=self.cached,
            output_tokens=self.output_tokens,
            ttft=self.ttft,
            tpot=self.tpot,
        )
        message.phases.extend(self._phases(now))
        return message

    def _phases(self, now: float) -> Iterable[pb.Phase]:
        for phase in self.phases:
            end = now if phase.end is None else phase.end
            yield pb.Phase(
                name=phase.name,
                instance=phase.instance,
                start=phase.start - self.began,
                seconds=end - phase.start,
                reason=phase.reason,
                tokens=phase.tokens,
                chunks=[pb.Chunk(tokens=tokens, age=end - at) for tokens, at in phase.chunks],
            )

    def _first(self, instance: str, message: pb.Tokens, now: float) -> None:
        """The first token of an attempt: now it is known how long it waited before its prefill."""
        begun = min(now, max(self.current.start, now - message.prefill_seconds))
        self.current.instance = instance
        self._next(PREFILL, begun, instance)
        self.cached = message.cached
        phase = self.current
        phase.chunks = [(one.tokens, max(begun, now - one.age)) for one in message.chunks[:MOST_CHUNKS]]
        phase.tokens = sum(one.tokens for one in message.chunks)
        if self.ttft is None:
            self.ttft = now - self.began
        away = self._decode not in ("", instance)
        self._next(HANDOFF if away else DECODE, now, instance)

    def _next(self, name: str, now: float, instance: str = "", reason: str = "") -> None:
        if len(self.phases) >= MOST_PHASES and name != RESPOND:
            self.current.reason = "and what came after"
            self.current.name = name
            self.current.instance = instance
            return
        self.current.end = now
        self.phases.append(Phase(name, now, instance=instance, reason=reason))
