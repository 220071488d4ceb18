"""One choice of a request on its way through an instance: the only mutable noun beside the blocks.

    WAITING ──▶ PREFILL ──▶ DECODE ──▶ FINISHED
       ▲          │ │          │ │          ▲
       └──────────┘ ▼          │ ▼          │
       preempted   PAUSED ◀────┘ (frozen by a movement) ──┘

A sequence derives everything from three counts: computed ≤ len(tokens), and prompt ≤ tokens.
A preempted sequence goes back to WAITING with its output; `computed` is then what host memory holds of it.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from enum import Enum
from typing import NamedTuple

from engine.plan import Drawn
from engine.request import Request

MOST_SCORES = 512
"""Tokens of a choice whose log-probabilities are kept."""


class Phase(Enum):
    WAITING = "waiting"
    PREFILL = "prefill"
    DECODE = "decode"
    PAUSED = "paused"
    FINISHED = "finished"

    # Enum's own is a Python function, and every sequence is looked up by its phase in every step.
    __hash__ = object.__hash__


LEGAL: dict[Phase, frozenset[Phase]] = {
    Phase.WAITING: frozenset({Phase.PREFILL, Phase.DECODE, Phase.PAUSED, Phase.FINISHED}),
    Phase.PREFILL: frozenset({Phase.WAITING, Phase.DECODE, Phase.PAUSED, Phase.FINISHED}),
    Phase.DECODE: frozenset({Phase.WAITING, Phase.PAUSED, Phase.FINISHED}),
    Phase.PAUSED: frozenset({Phase.WAITING, Phase.PREFILL, Phase.DECODE, Phase.FINISHED}),
    Phase.FINISHED: frozenset(),
}


class Tier(Enum):
    """Where the KV of a sequence is."""

    DEVICE = "device"
    HOST = "host"
    DISK = "disk"


class FinishReason(Enum):
    STOP = "stop"
    LENGTH = "length"
    CANCELLED = "cancelled"
    FAILED = "failed"


class Epoch(NamedTuple):
    """Who may speak for a request: compared in this order, a push with an older epoch is fenced.

    The home gateway raises `attempt` when it recovers a request; COMMIT of a movement raises `move`.
    """

    attempt: int = 0
    move: int = 0


START = Epoch()


class SequenceKey(NamedTuple):
    request_id: str
    choice: int


@dataclass(slots=True)
class Sequence:
    """Mutable state of one choice. `home` is the address of the gateway that its tokens go to.

    `level` and `served` are where a queue with levels has it: the level, None before it has one, and the
    seconds that it has had of that level's quantum. `scores` is what was reported of the last of the tokens
    that were drawn here, by index in `output`; nothing where no log-probabilities are asked for.
    """

    request: Request
    choice: int = 0
    output: list[int] = field(default_factory=list)
    computed: int = 0
    phase: Phase = Phase.WAITING
    tier: Tier = Tier.DEVICE
    blocks: list[int] = field(default_factory=list)
    epoch: Epoch = START
    home: str = ""
    cached: int = 0
    preemptions: int = 0
    level: int | None = None
    served: float = 0.0
    scores: deque[tuple[int, Drawn]] = field(default_factory=lambda: deque(maxlen=MOST_SCORES))

    @property
    def key(self) -> SequenceKey:
        return SequenceKey(self.request.id, self.choice)

    def __len__(self) -> int:
        """Tokens known so far: prompt and output."""
        return len(self.request.prompt) + len(self.output)

    @property
    def remaining(self) -> int:
        """Tokens known but not yet computed: ≥ 1 while the sequence runs, 1 in steady decode."""
        return len(self.request.prompt) + len(self.output) - self.computed

    def tokens(self, start: int, stop: int) -> list[int]:
        """Token ids of positions [start, stop)."""
        prompt = self.request.prompt
        split = len(prompt)
        return [*prompt[start:stop], *self.output[max(0, start - split) : max(0, stop - split)]]

    def become(self, phase: Phase) -> None:
        """Change phase; an illegal change is a bug, never a consequence of input."""
        assert phase in LEGAL[self.phase], f"{self.key}: {self.phase.value} -> {phase.value}"
        self.phase = phase
