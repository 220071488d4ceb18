"""Puts the tokens of one request in order and decides who may push them: the gateway's half of exactly once.

instance A, epoch (0, 0) ── index 0 ────────────────▶┐
                claim (0, 1) with lengths {0: 2}     │  next = 0 … deliver, in order, once
instance A, epoch (0, 0) ── index 1, then 2 ────────▶│  1 is below the claim's length: taken; 2 is not: fenced
instance B, epoch (0, 1) ── index 2, 3 … ───────────▶│  waits until 1 is there
fence (1, 0): the request was recovered ────────────▶┘  all of attempt 0 is fenced; next stays where it is
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

from cluster import control_pb2 as pb
from engine.sequence import START, Epoch


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


@dataclass(frozen=True, slots=True)
class Ownership:
    """Who may speak for a request: its epoch, who claimed it, and what the claims of this attempt took over.

    `owner` is "" until somebody claims. Of each claim: its move, and (choice, tokens) of the live choices.
    Immutable.
    """

    epoch: Epoch = START
    owner: str = ""
    claims: tuple[tuple[int, tuple[tuple[int, int], ...]], ...] = ()

    def fenced(self, epoch: Epoch) -> Ownership:
        """The home starts a new attempt, which nobody has claimed."""
        return replace(self, epoch=epoch, owner="", claims=())

    def claimed(self, instance: str, epoch: Epoch, lengths: Mapping[int, int]) -> Ownership | None:
        """Compare-and-set: granted to a newer move of the present attempt, and to its owner again.

        None: refused.
        """
        if epoch == self.epoch and instance == self.owner:
            return self
        if epoch.attempt != self.epoch.attempt or epoch.move <= self.epoch.move:
            return None
        claim = epoch.move, tuple(sorted(lengths.items()))
        return replace(self, epoch=epoch, owner=instance, claims=(*self.claims, claim))

    def bound(self, epoch: Epoch, choice: int) -> int | None:
        """Below which index of a choice an epoch may push; None: no bound.

        An older move of this attempt may fill what the next newer claim took over. A choice that this claim
        does not name had ended before it.
        """
        if epoch.attempt != self.epoch.attempt or epoch > self.epoch:
            return 0
        for move, lengths in self.claims:
            if move > epoch.move:
                return dict(lengths).get(choice)
        return None


@dataclass(slots=True)
class _Choice:
    next: int = 0
    finished: bool = False
    waiting: dict[int, Piece] = field(default_factory=dict)


class TokenOrder:
    """Order and ownership of one request's pushes. Pure: the caller wakes whoever reads."""

    def __init__(self, n: int, max_tokens: int) -> None:
        self.ownership = Ownership()
        self._choices = [_Choice() for _ in range(n)]
        self._most = max_tokens

    @property
    def epoch(self) -> Epoch:
        return self.ownership.epoch

    @property
    def owner(self) -> str:
        return self.ownership.owner

    def fence(self, epoch: Epoch) -> None:
        """The home starts a new attempt: whatever waits out of order comes again from there."""
        self.ownership = self.ownership.fenced(epoch)
        for choice in self._choices:
            choice.waiting.clear()

    def continued(self, pieces: Iterable[Piece]) -> None:
        """The reader has these from elsewhere."""
        for piece in pieces:
            choice = self._choices[piece.choice]
            choice.next += piece.token is not None
            choice.finished |= bool(piece.finish)

    def claim(self, instance: str, epoch: Epoch, lengths: Mapping[int, int]) -> bool:
        """Whether the epoch is the instance's now."""
        claimed = self.ownership.claimed(instance, epoch, lengths)
        if claimed is None:
            return False
        self.ownership = claimed
        return True

    def push(self, tokens: pb.Tokens) -> tuple[list[Piece], bool]:
        """The pieces that are now in order, and whether the pusher's epoch may still speak."""
        if tokens.choice >= len(self._choices):
            return [], False
        choice = self._choices[tokens.choice]
        bound = self.ownership.bound(Epoch(tokens.epoch.attempt, tokens.epoch.move), tokens.choice)
        allowed = True
        for piece in pieces(tokens):
            if bound is not None and piece.index >= bound:
                allowed = False
            elif choice.next <= piece.index <= self._most and not choice.finished:
                choice.waiting.setdefault(piece.index, piece)
        return self._advance(choice), allowed

    def gaps(self) -> dict[int, int]:
        """Tokens delivered of each choice that lacks some: others wait for them, or a claim promised them."""
        claims = self.ownership.claims
        promised = dict(claims[-1][1]) if claims else {}
        return {
            number: choice.next
            for number, choice in enumerate(self._choices)
            if not choice.finished and (choice.waiting or choice.next < promised.get(number, 0))
        }

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
