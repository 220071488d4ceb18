"""The numbers of one request that metrics, headers and the demo show."""

from __future__ import annotations

from dataclasses import dataclass, field

from cluster import control_pb2 as pb
from cluster.stream_order import Piece


@dataclass(slots=True)
class RunProgress:
    """Times in seconds on the gateway's monotonic clock; `gaps` are the times between tokens of one choice.

    `prefill` is the instance that pushed the first token, `decode` the one
    that holds the request, or will by its placement.
    """

    started: float
    place_time: float | None = None
    first: float | None = None
    last: float | None = None
    prefill: str = ""
    decode: str = ""
    cached: int = 0
    queue_seconds: float = 0.0
    prefill_seconds: float = 0.0
    recoveries: int = 0
    output_tokens: int = 0
    gaps: list[float] = field(default_factory=list)
    finishes: list[str] = field(default_factory=list)
    _latest: dict[int, float] = field(default_factory=dict)

    def placed(self, prefill: str, decode: str, now: float) -> None:
        self.place_time = now
        if not self.prefill:
            self.prefill, self.decode = prefill, decode

    def take(self, instance: str, owner: str, pieces: list[Piece], message: pb.Tokens, now: float) -> None:
        """Note the tokens that a push of `instance` put in order while `owner` holds the request."""
        if self.first is None:
            self.first, self.prefill = now, instance
            self.cached = message.cached
            self.queue_seconds, self.prefill_seconds = message.queue_seconds, message.prefill_seconds
        self.last = now
        # A first token says nothing of where the decode will be; the placement does.
        if any(piece.index > 0 for piece in pieces):
            self.decode = owner
        for piece in pieces:
            if piece.token is not None:
                self.output_tokens += 1
                if piece.choice in self._latest:
                    self.gaps.append(now - self._latest[piece.choice])
                self._latest[piece.choice] = now
            if piece.finish:
                self.finishes.append(piece.finish)

    @property
    def ttft(self) -> float | None:
        """Time to first token."""
        return None if self.first is None else self.first - self.started

    @property
    def tpot(self) -> float | None:
        """Time per output token after the first: the mean over the gaps of all choices."""
        return sum(self.gaps) / len(self.gaps) if self.gaps else None
