"""Answers of the OpenAI API: completions and chats, whole and in chunks."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

from cluster.stream_order import Piece
from cluster.tool_calls import CallReader, Told

# Anything but stop and length ends a request with an error instead.
_FINISH = {"stop": "stop", "length": "length"}


@dataclass(frozen=True, slots=True)
class ModelCard:
    """The model as clients see it. `max_length` is in tokens, prompt and answer together."""

    name: str
    max_length: int
    created: int
    digest: str = ""

    @property
    def fingerprint(self) -> str:
        """Changes when answers to the same request may."""
        return f"fp_{self.digest[:12]}"

    def body(self) -> dict[str, object]:
        return {
            "id": self.name,
            "object": "model",
            "created": self.created,
            "owned_by": "tandem",
            "root": self.name,
            "parent": None,
            "max_model_len": self.max_length,
        }


class TokenNames(Protocol):
    """The bytes that a token stands for."""

    def token_bytes(self, token: int) -> bytes: ...


@dataclass(slots=True)
class Choice:
    """What a choice has come to; `shown` counts the characters answered, an echoed prompt included."""

    text: str = ""
    pieces: list[Piece] = field(default_factory=list)
    tokens: int = 0
    shown: int = 0
    finish: str | None = None
    stop_reason: str | int | None = None


@dataclass(slots=True)
class Usage:
    prompt: int
    completion: int = 0
    cached: int = 0

    def body(self) -> dict[str, Any]:
        return {
            "prompt_tokens": self.prompt,
            "completion_tokens": self.completion,
            "total_tokens": self.prompt + self.completion,
            "prompt_tokens_details": {"cached_tokens": self.cached},
        }


class Answer:
    """Shapes of one request's answer. Subclass per endpoint; every chunk has the same id, time and model."""

    prefix = ""
    whole = ""
    chunk = ""

    def __init__(self, request_id: str, model: ModelCard, names: TokenNames, *, logprobs: bool) -> None:
        self.id = f"{self.prefix}-{request_id}"
        self._model = model
        self._created = int(time.time())
        self._names = names
        self._logprobs = logprobs

    def whole_body(self, choices: Sequence[Choice], usage: Usage) -> dict[str, Any]:
        listed = [
            {
                "index": index,
                **self._message(index, choice),
                "logprobs": self._log(choice.pieces, choice.shown) if self._logprobs else None,
                "stop_reason": choice.stop_reason,
            }
            for index, choice in enumerate(choices)
        ]
        return {**self._head(self.whole), "choices": listed, "usage": usage.body()}

    def chunk_bodies(
        self, index: int, choice: Choice, pieces: Sequence[Piece], *, first: bool
    ) -> list[dict[str, Any]]:
        """The chunks for new tokens of a choice."""
        raise NotImplementedError

    def had(self, index: int, text: str) -> None:
        """The client has this text of a choice from an earlier connection."""

    def parts(self, pieces: Sequence[Piece]) -> list[Sequence[Piece]]:
        """New tokens of a choice, cut where a client may stop reading: it has what its last event counts."""
        return [pieces]

    def usage_chunk(self, usage: Usage) -> dict[str, Any]:
        return {**self._head(self.chunk), "choices": [], "usage": usage.body()}

    def _head(self, kind: str) -> dict[str, Any]:
        return {
            "id": self.id,
            "object": kind,
            "created": self._created,
            "model": self._model.name,
            "system_fingerprint": self._model.fingerprint,
        }

    def _message(self, index: int, choice: Choice) -> dict[str, Any]:
        """What is said, and why it ended if that is not `finish`."""
        raise NotImplementedError

    def _log(self, pieces: Sequence[Piece], offset: int) -> dict[str, Any]:
        raise NotImplementedError

    def _name(self, token: int) -> str:
        return spelled(self._names.token_bytes(token))


class CompletionAnswer(Answer):
    prefix = "cmpl"
    whole = chunk = "text_completion"

    def chunk_bodies(
        self, index: int, choice: Choice, pieces: Sequence[Piece], *, first: bool
    ) -> list[dict[str, Any]]:
        text = "".join(piece.text for piece in pieces)
        if first:
            text = choice.text + text
        ended = pieces[-1].finish or None
        if not (text or first or ended or self._logprobs):
            return []
        listed = {
            "index": index,
            "text": text,
            "logprobs": self._log(pieces, choice.shown) if self._logprobs else None,
            "finish_reason": _FINISH.get(ended or ""),
            "stop_reason": pieces[-1].stop_reason,
        }
        return [{**self._head(self.chunk), "choices": [listed]}]

    def _message(self, index: int, choice: Choice) -> dict[str, Any]:
        return {"text": choice.text, "finish_reason": choice.finish}

    def _log(self, pieces: Sequence[Piece], offset: int) -> dict[str, Any]:
        offsets, tokens, logprobs, tops = [], [], [], []
        for piece in pieces:
            if piece.token is not None and piece.logprob is not None:
                offsets.append(offset)
                tokens.append(self._name(piece.token))
                logprobs.append(piece.logprob)
                tops.append({self._name(token): logprob for token, logprob in piece.top})
            offset += len(piece.text)
        return {"text_offset": offsets, "token_logprobs": logprobs, "tokens": tokens, "top_logprobs": tops}


class ChatAnswer(Answer):
    prefix = "chatcmpl"
    whole = "chat.completion"
    chunk = "chat.completion.chunk"

    def __init__(
        self,
        request_id: str,
        model: ModelCard,
        names: TokenNames,
        *,
        logprobs: bool,
        tools: bool = False,
    ) -> None:
        """tools: whether there are functions to call."""
        super().__init__(request_id, model, names, logprobs=logprobs)
        self._tools = tools
        self._calls: dict[int, CallReader] = {}

    def had(self, index: int, text: str) -> None:
        self._told(index, text)

    def chunk_bodies(
        self, index: int, choice: Choice, pieces: Sequence[Piece], *, first: bool
    ) -> list[dict[str, Any]]:
        bodies = []
        if first:
            bodies.append(self._delta(index, {"role": "assistant", "content": ""}))
        text = "".join(piece.text for piece in pieces)
        log = self._log(pieces, 0) if self._logprobs else None
        told = self._told(index, text, ended=bool(pieces[-1].finish))
        delta: dict[str, Any] = {}
        if told.text or (log is not None and log["content"] and not told.calls):
            delta["content"] = told.text
        if told.calls:
            delta["tool_calls"] = [{"index": call.number, **call.body()} for call in told.calls]
        log = log if delta else None
        if pieces[-1].finish:
            end = {"finish_reason": self._finish(index, pieces[-1].finish)}
            bodies.append(self._delta(index, delta, logprobs=log, **end, stop_reason=pieces[-1].stop_reason))
        elif delta:
            bodies.append(self._delta(index, delta, logprobs=log))
        return bodies

    def _told(self, index: int, text: str, *, ended: bool = False) -> Told:
        """The text with the calls taken out of it."""
        if not self._tools:
            return Told(text)
        reader = self._calls.setdefault(index, CallReader(f"{self.id}/{index}"))
        told = reader.push(text)
        return Told(told.text + reader.end().text, told.calls) if ended else told

    def _finish(self, index: int, reason: str | None) -> str | None:
        called = index in self._calls and self._calls[index].count > 0
        return "tool_calls" if called and reason == "stop" else _FINISH.get(reason or "")

    def _delta(self, index: int, delta: Mapping[str, Any], **rest: Any) -> dict[str, Any]:
        listed = {"index": index, "delta": delta, "logprobs": None, "finish_reason": None, **rest}
        return {**self._head(self.chunk), "choices": [listed]}

    def parts(self, pieces: Sequence[Piece]) -> list[Sequence[Piece]]:
        """The end has an event of its own."""
        *rest, last = pieces
        if not last.finish or last.token is None:
            return [pieces]
        text = replace(last, finish="", stop_reason=None)
        end = replace(last, index=last.index + 1, token=None, text="", logprob=None, top=())
        return [[*rest, text], [end]]

    def _message(self, index: int, choice: Choice) -> dict[str, Any]:
        told = self._told(index, choice.text, ended=True)
        calls = {"tool_calls": [call.body() for call in told.calls]} if told.calls else {}
        content = told.text if told.text or not calls else None
        message = {"role": "assistant", "content": content, "refusal": None, "annotations": [], **calls}
        return {"message": message, "finish_reason": self._finish(index, choice.finish)}

    def _log(self, pieces: Sequence[Piece], offset: int) -> dict[str, Any]:
        content = [
            {
                **self._token(piece.token, piece.logprob),
                "top_logprobs": [self._token(token, logprob) for token, logprob in piece.top],
            }
            for piece in pieces
            if piece.token is not None and piece.logprob is not None
        ]
        return {"content": content, "refusal": None}

    def _token(self, token: int, logprob: float) -> dict[str, Any]:
        raw = self._names.token_bytes(token)
        return {"token": spelled(raw), "logprob": logprob, "bytes": list(raw)}


def spelled(raw: bytes) -> str:
    """A token as text; one that is only part of a character by its bytes, as OpenAI writes it."""
    try:
        return raw.decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in raw)
