"""A request while it lives in an engine core: its choices, and what is worked out once for all of them."""

from __future__ import annotations

from dataclasses import dataclass, field

from engine.request import Request
from engine.sequence import Epoch, FinishReason, Sequence


@dataclass(slots=True, eq=False)
class Live:
    """`order` is the order of arrival here; `root` starts the prefix keys; times are in seconds.

    A sequence without output stands for all the choices in `undrawn`: their prompt is computed once.
    `keys` are the prefix keys of each sequence, as far as they are known. `handed` is set once all
    choices of a handoff have their first token.
    """

    request: Request
    order: int
    root: bytes
    eos: frozenset[int]
    max_length: int
    undrawn: tuple[int, ...] = ()
    handoff: bool = False
    handed: bool = False
    sequences: dict[int, Sequence] = field(default_factory=dict)
    keys: dict[int, list[bytes]] = field(default_factory=dict)
    arrived: float | None = None
    started: float | None = None
    first: float | None = None
    cached: int = 0
    ends: frozenset[int] = field(init=False)

    def __post_init__(self) -> None:
        sampling = self.request.sampling
        self.ends = frozenset(sampling.stop_token_ids)
        if not sampling.ignore_eos:
            self.ends |= self.eos

    def add(self, sequence: Sequence, keys: list[bytes]) -> None:
        self.sequences[sequence.choice] = sequence
        self.keys[sequence.choice] = keys

    @property
    def epoch(self) -> Epoch:
        """The newest that any of its choices has: a movement may have raised it."""
        return max(sequence.epoch for sequence in self.sequences.values())

    def width(self, sequence: Sequence) -> int:
        """How many choices `sequence` stands for."""
        return 1 if sequence.output else len(self.undrawn)

    def choices(self, sequence: Sequence) -> tuple[int, ...]:
        return (sequence.choice,) if sequence.output else self.undrawn

    def banned(self, position: int) -> frozenset[int]:
        """Tokens that may not be drawn at `position` of the output: those that end it before `min_tokens`."""
        return self.ends if position < self.request.sampling.min_tokens else frozenset()

    def ending(self, sequence: Sequence) -> tuple[FinishReason | None, int | None]:
        """Whether the last token ends the choice, and the stop token if it is one of the request's own."""
        token = sequence.output[-1]
        if token in self.ends:
            return FinishReason.STOP, token if token in self.request.sampling.stop_token_ids else None
        if len(sequence.output) >= self.request.sampling.max_tokens or len(sequence) >= self.max_length:
            return FinishReason.LENGTH, None
        return None, None

    @property
    def queued(self) -> float:
        """Seconds between arrival here and the first step."""
        return 0.0 if self.started is None or self.arrived is None else self.started - self.arrived

    @property
    def prefilled(self) -> float:
        """Seconds between the first step and the first token."""
        return 0.0 if self.first is None or self.started is None else self.first - self.started
