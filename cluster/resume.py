"""Where a client's stream was: the id of each event, and what a client that comes back asks for.

event id: cmpl-NAME:12,7.     12 tokens of choice 0, all 7 of choice 1, whose end the client has too
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from hashlib import sha256

from starlette.requests import Request

from cluster.openai_answers import Choice
from cluster.stream_order import Piece
from engine.errors import InvalidParameter

_POSITION = re.compile(r"\d{1,9}\.?(,\d{1,9}\.?)*")


@dataclass(frozen=True, slots=True)
class Seen:
    """What a client has of one choice."""

    tokens: int = 0
    ended: bool = False


@dataclass(frozen=True, slots=True)
class Reconnection:
    """What a request says about itself beside its body.

    `named`: its id is the client's. `resumable`: it is kept for a while when its client leaves. `again`:
    the client may have asked before, and has `seen` so much of each choice; () for nothing. `digest` tells
    whether the body is the same.
    """

    digest: bytes = b""
    named: bool = False
    resumable: bool = False
    again: bool = False
    seen: tuple[Seen, ...] = ()

    def seen_of(self, prompt: int, n: int) -> tuple[Seen, ...]:
        """Of each of the n choices of a prompt."""
        return self.seen[prompt * n : (prompt + 1) * n] or (Seen(),) * n


def position(choices: Sequence[Choice]) -> str:
    """What the client has when it has been sent all that these choices count."""
    return ",".join(f"{choice.tokens}{'.' if choice.finish else ''}" for choice in choices)


def digest_of(path: str, body: bytes) -> bytes:
    """Equal for the same question."""
    return sha256(path.encode() + b"\0" + body).digest()


def reconnection(http: Request, answer_id: str) -> Reconnection:
    """Read the headers. Raises InvalidParameter for a Last-Event-ID that was never given."""
    digest = http.scope["state"]["digest"]
    named = http.headers.get("x-request-id") == http.scope["state"]["request_id"]
    resumable = named and http.headers.get("x-tandem-resumable") == "1"
    last = http.headers.get("last-event-id")
    if last is None or not named:
        return Reconnection(digest, named, resumable, again=resumable)
    if not last:
        return Reconnection(digest, named, resumable, again=True)
    identity, _, where = last.rpartition(":")
    if identity != answer_id or not _POSITION.fullmatch(where):
        raise InvalidParameter(
            f"the Last-Event-ID is of no event of {answer_id}: send the last one of that x-request-id",
            param="last-event-id",
        )
    seen = tuple(Seen(int(part.rstrip(".")), part.endswith(".")) for part in where.split(","))
    return Reconnection(digest, named, resumable, again=True, seen=seen)


def check_shape(seen: Sequence[Seen], choices: int) -> None:
    """Raises InvalidParameter for what a client has of other choices than there are; () is nothing of any."""
    if seen and len(seen) != choices:
        raise InvalidParameter(
            f"the Last-Event-ID has {len(seen)} choices, the request {choices}", param="last-event-id"
        )


def wants_ids(http: Request) -> bool:
    """Whether the client reads events as the standard has them, or has said that it may come back.

    Others may not: `vllm bench serve` and its like take an event that does not begin with data for broken.
    """
    headers = http.headers
    return (
        "text/event-stream" in headers.get("accept", "")
        or headers.get("x-tandem-resumable") == "1"
        or "last-event-id" in headers
    )


def unseen(piece: Piece, seen: Seen) -> Piece | None:
    """What of a piece is new to a client; None if it has all of it."""
    if piece.token is None:
        return None if seen.ended else piece
    if piece.index >= seen.tokens:
        return piece
    if piece.finish and not seen.ended:
        return replace(piece, token=None, text="", logprob=None, top=())
    return None
