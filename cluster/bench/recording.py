"""Reads a recorded answer: which bytes came when, as HTTP, as server-sent events, as tokens with times."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

_DONE = b"[DONE]"


@dataclass(slots=True)
class Recording:
    """One answer as it came. Times are of time.perf_counter(), `ended` is None if it never did."""

    begun: float
    pieces: list[tuple[float, bytes]] = field(default_factory=list)
    ended: float | None = None
    failure: str | None = None


@dataclass(frozen=True, slots=True)
class Outcome:
    """What one request came to. Times in seconds of one clock.

    `times` has one entry for each event that brought text or went on without an end: a token, or several
    where the server puts them together. `output_tokens` are as the server counts them, else the events.
    """

    begun: float
    times: tuple[float, ...]
    asked_tokens: int
    prompt_tokens: int
    output_tokens: int
    failure: str | None = None

    @property
    def ok(self) -> bool:
        return self.failure is None

    @property
    def ttft(self) -> float:
        return self.times[0] - self.begun

    @property
    def tpot(self) -> float | None:
        """None below two tokens."""
        if self.output_tokens < 2:
            return None
        return (self.times[-1] - self.times[0]) / (self.output_tokens - 1)

    @property
    def gaps(self) -> tuple[float, ...]:
        return tuple(after - before for before, after in zip(self.times, self.times[1:], strict=False))

    @property
    def latency(self) -> float:
        """Until the last token."""
        return self.times[-1] - self.begun

    def meets(self, ttft: float, tpot: float) -> bool:
        """Whether a finished request is within both objectives, in seconds."""
        return self.ok and self.ttft <= ttft and (self.tpot is None or self.tpot <= tpot)


def read(recording: Recording, *, prompt_tokens: int, asked_tokens: int) -> Outcome:
    """`prompt_tokens` counts where the server's usage does not say.

    A stream that only ends has failed: a server that dies closes its connections as one that is done does. It
    must have had a finish_reason or [DONE], of which some servers send only one.
    """
    times: list[float] = []
    usage: dict[str, Any] = {}
    failure, whole = recording.failure, False
    try:
        for moment, event in events(recording):
            if event is None:
                whole = True
                continue
            if event.get("error"):
                failure = failure or _message(event)
            if event.get("usage"):
                usage = event["usage"]
            choices = event.get("choices") or ()
            whole = whole or any(choice.get("finish_reason") for choice in choices)
            if any(map(_brings, choices)):
                times.append(moment)
    except ValueError as error:
        failure = failure or str(error)
    if not times:
        failure = failure or "the answer has no tokens"
    elif not whole:
        failure = failure or f"the stream broke off after {len(times)} events, without an end"
    return Outcome(
        begun=recording.begun,
        times=tuple(times),
        asked_tokens=asked_tokens,
        prompt_tokens=int(usage.get("prompt_tokens") or prompt_tokens),
        output_tokens=int(usage.get("completion_tokens") or len(times)),
        failure=failure,
    )


def _brings(choice: dict[str, Any]) -> bool:
    """Whether an event brings a token: not a chat's opening role, nor a closing event without text."""
    delta = choice.get("delta")
    if delta is not None:
        return bool(delta.get("content"))
    return bool(choice.get("text")) or choice.get("finish_reason") is None


def _message(event: dict[str, Any]) -> str:
    error = event["error"]
    return str(error.get("message", error) if isinstance(error, dict) else error)[:300]


def events(recording: Recording) -> Iterator[tuple[float, dict[str, Any] | None]]:
    """Each event of the stream with the time of the piece that completed it, None for [DONE].

    Raises ValueError for an answer that is none, with the server's own words where it has any.
    """
    pieces = _Pieces(recording.pieces)
    head = pieces.until(b"\r\n\r\n")
    if head is None:
        raise ValueError("the server closed the connection without an answer")
    status, *lines = head[1].decode("latin-1").split("\r\n")
    chunked = any(line.lower().replace(" ", "") == "transfer-encoding:chunked" for line in lines)
    body = _chunks(pieces) if chunked else pieces.rest()
    words = status.split()
    if len(words) < 2 or words[1] != "200":
        raise ValueError(_refusal(status, b"".join(data for _, data in body)))
    yield from _events(body)


def _events(body: Iterator[tuple[float, bytes]]) -> Iterator[tuple[float, dict[str, Any] | None]]:
    """Lines of data; comments, names and ids are skipped."""
    moment, left = 0.0, b""
    for moment, data in body:
        *lines, left = (left + data).split(b"\n")
        for line in lines:
            if (value := _value(line)) is not None:
                yield moment, None if value == _DONE else json.loads(value)
    # The client hangs up at [DONE], so the rest of that line may be missing.
    if _value(left) == _DONE:
        yield moment, None


def _value(line: bytes) -> bytes | None:
    text = line.strip()
    return text[5:].strip() if text.startswith(b"data:") else None


def _refusal(status: str, body: bytes) -> str:
    try:
        found = json.loads(body)
        reason = _message(found) if "error" in found else str(found)[:300]
    except (ValueError, TypeError):
        reason = body.decode("utf-8", "replace")[:300]
    return f"{status.partition(' ')[2]}: {reason}"


class _Pieces:
    """The recorded bytes as a stream in which every position has a time."""

    def __init__(self, pieces: list[tuple[float, bytes]]) -> None:
        self._pieces = iter(pieces)
        self._moment = 0.0
        self._left = b""

    def until(self, mark: bytes) -> tuple[float, bytes] | None:
        """What comes before `mark`, which is dropped; None if it never comes."""
        while (place := self._left.find(mark)) < 0:
            if not self._more():
                return None
        found, self._left = self._left[:place], self._left[place + len(mark) :]
        return self._moment, found

    def exactly(self, size: int) -> Iterator[tuple[float, bytes]]:
        """`size` bytes in the pieces in which they came; fewer at the end of the recording."""
        while size > 0 and (self._left or self._more()):
            found, self._left = self._left[:size], self._left[size:]
            size -= len(found)
            yield self._moment, found

    def rest(self) -> Iterator[tuple[float, bytes]]:
        while self._left or self._more():
            found, self._left = self._left, b""
            yield self._moment, found

    def _more(self) -> bool:
        piece = next(self._pieces, None)
        if piece is None:
            return False
        self._moment = piece[0]
        self._left += piece[1]
        return True


def _chunks(pieces: _Pieces) -> Iterator[tuple[float, bytes]]:
    """The body of a chunked transfer (RFC 9112, section 7.1)."""
    while (line := pieces.until(b"\r\n")) is not None:
        size = int(line[1].partition(b";")[0], 16)
        if size == 0:
            return
        yield from pieces.exactly(size)
        pieces.until(b"\r\n")
