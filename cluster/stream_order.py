"""Puts the tokens of one request in order and decides who may push them: the gateway's half of exactly once.

instance A, epoch (0, 0) ── index 0 ────────────────▶┐
                claim (0, 1) with lengths {0: 2}     │  next = 0 … deliver, in order, once
instance A, epoch (0, 0) ── index 1, then 2 ────────▶│  1 is below the claim's length: taken; 2 is not: fenced
instance B, epoch (0, 1) ── index 2, 3 … ───────────▶│  waits until 1 is there
fence (1, 0): the request was recovered ────────────▶┘  all of attempt 0 is fenced; next stays where it is
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from cluster import control_pb2 as pb
from engine.sequence import Epoch


@dataclass(frozen=True, slots=True)
class Piece:
    """One token of one choice with its text, or an end without a token (`token` None)."""

    choice: int
    index: int
    token: int | None
    text: str
    logprob: float | None = None
    top: tuple[tuple[int, float], ...] = ()
    finish: str = ""
    stop_reason: str | int | None = None


@dataclass(slots=True)
class _Choice:
    next: int = 0
    finished: bool = False
    waiting: dict[int, Piece] = field(default_factory=dict)


class TokenOrder:
    """Order and ownership of one request's pushes. Pure: the caller wakes whoever reads."""

    def __init__(self, n: int, max_tokens: int) -> None:
        self.epoch = Epoch()
        self.owner = ""
        self._choices = [_Choice() for _ in range(n)]
        self._claims: list[tuple[int, dict[int, int]]] = []
        self._bound = max_tokens

    def fence(self, epoch: Epoch) -> None:
        """The home starts a new attempt: whatever waits out of order comes again from there."""
        self.epoch, self.owner = epoch, ""
        self._claims.clear()
        for choice in self._choices:
            choice.waiting.clear()

    def continued(self, pieces: Iterable[Piece]) -> None:
        """The reader has these from elsewhere."""
        for piece in pieces:
            choice = self._choices[piece.choice]
            choice.next += piece.token is not None
            choice.finished |= bool(piece.finish)

    def claim(self, instance: str, epoch: Epoch, lengths: Mapping[int, int]) -> bool:
        """Compare-and-set: granted to a newer move of the present attempt, and to its owner again."""
        if epoch == self.epoch and instance == self.owner:
            return True
        if epoch.attempt != self.epoch.attempt or epoch.move <= self.epoch.move:
            return False
        self.epoch, self.owner = epoch, instance
        self._claims.append((epoch.move, dict(lengths)))
        return True

    def push(self, tokens: pb.Tokens) -> tuple[list[Piece], bool]:
        """The pieces that are now in order, and whether the pusher's epoch may still speak."""
        epoch = Epoch(tokens.epoch.attempt, tokens.epoch.move)
        if tokens.choice >= len(self._choices) or epoch.attempt != self.epoch.attempt or epoch > self.epoch:
            return [], False
        choice = self._choices[tokens.choice]
        limit = self._limit(epoch, tokens.choice)
        allowed = True
        for piece in pieces(tokens):
            if limit is not None and piece.index >= limit:
                allowed = False
            elif choice.next <= piece.index <= self._bound and not choice.finished:
                choice.waiting.setdefault(piece.index, piece)
        return self._advance(choice), allowed

    def gaps(self) -> bool:
        """Whether tokens wait for earlier ones, or a claim promised tokens that have not come."""
        promised = self._claims[-1][1] if self._claims else {}
        for number, choice in enumerate(self._choices):
            if not choice.finished and (choice.waiting or choice.next < promised.get(number, 0)):
                return True
        return False

    def position(self) -> tuple[int, ...]:
        """Tokens delivered of each choice."""
        return tuple(choice.next for choice in self._choices)

    def _limit(self, epoch: Epoch, choice: int) -> int | None:
        """Below which index an epoch may push: what the next newer claim took over; None without a bound."""
        for move, lengths in self._claims:
            if move > epoch.move:
                return lengths.get(choice)
        return None

    def _advance(self, choice: _Choice) -> list[Piece]:
        ready: list[Piece] = []
        while not choice.finished and choice.next in choice.waiting:
            piece = choice.waiting.pop(choice.next)
            ready.append(piece)
            choice.next += piece.token is not None
            choice.finished = bool(piece.finish)
        if choice.finished:
            choice.waiting.clear()
        return ready


def pieces(tokens: pb.Tokens) -> list[Piece]:
    """The message cut into single tokens; the end goes with the last of them."""
    last = len(tokens.tokens) - 1
    stop_reason: str | int | None = None
    if tokens.HasField("stop_string"):
        stop_reason = tokens.stop_string
    elif tokens.HasField("stop_token"):
        stop_reason = tokens.stop_token
    if last < 0:
        text = tokens.text[0] if tokens.text else ""
        return [
            Piece(
                tokens.choice, tokens.index, None, text, finish=tokens.finish_reason, stop_reason=stop_reason
            )
        ]
    out = []
    for offset, token in enumerate(tokens.tokens):
        logprob = tokens.logprobs[offset] if offset < len(tokens.logprobs) else None
        out.append(
            Piece(
                choice=tokens.choice,
                index=tokens.index + offset,
                token=token,
                text=tokens.text[offset] if offset < len(tokens.text) else "",
                logprob=logprob.logprob if logprob else None,
                top=tuple((top.token, top.logprob) for top in logprob.top) if logprob else (),
                finish=tokens.finish_reason if offset == last else "",
                stop_reason=stop_reason if offset == last else None,
            )
        )
    return out
