"""A client that streams an answer, comes back when it is cut off, and remembers when each token came."""

from __future__ import annotations

import asyncio
import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import httpx

PAUSE = 0.2
"""Seconds until a client that was cut off tries again."""


@dataclass(frozen=True, slots=True)
class Ask:
    """One request: `number` is its place in the load, `name` its x-request-id."""

    number: int
    name: str
    body: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Token:
    """A token as it is spelled, its log-probability and those of the likeliest ones in its place."""

    text: str
    logprob: float
    top: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class Likeness:
    """Of a whole answer and the undisturbed one: `changed` says what differs, "" if nothing does. `tokens` of
    it had log-probabilities to be compared, which were at most `apart`."""

    changed: str = ""
    tokens: int = 0
    apart: float = 0.0


@dataclass(slots=True)
class Answer:
    """What came of a request. Times are seconds on the monotonic clock, one for each event with text.

    `logs` has the tokens of each choice, if log-probabilities were asked for, until `likeness` is known.
    `status` is what a gateway refused it with for good, 0 if none did.
    """

    ask: Ask
    texts: dict[int, str] = field(default_factory=dict)
    ends: dict[int, str] = field(default_factory=dict)
    times: list[float] = field(default_factory=list)
    tokens: int = 0
    connections: int = 0
    recoveries: int = 0
    repeated: int = 0
    error: str = ""
    status: int = 0
    done: bool = False
    logs: dict[int, list[Token]] = field(default_factory=dict)
    likeness: Likeness | None = None

    @property
    def whole(self) -> bool:
        return self.done and not self.error and len(self.ends) == self.ask.body["n"]

    @property
    def gaps(self) -> list[tuple[float, float]]:
        """When each pause between two events began, and how long it was."""
        return [(before, after - before) for before, after in zip(self.times, self.times[1:], strict=False)]


async def ask(
    ask: Ask,
    client: httpx.AsyncClient,
    gateways: Callable[[], Sequence[str]],
    within: float,
    reach: float = math.inf,
) -> Answer:
    """Ask until there is an answer, an error that is final, or no time left.

    `within` is in seconds, as is `reach`, in which a gateway must have accepted a connection.
    """
    answer = Answer(ask)
    last = trouble = ""
    begun = time.monotonic()
    turn = ask.number
    while not answer.done and not answer.error:
        if time.monotonic() > begun + within:
            answer.error = f"no answer in {within:g} s" + (f" ({trouble})" if trouble else "")
            break
        urls = gateways()
        if not urls:
            await asyncio.sleep(PAUSE)
            continue
        url = urls[turn % len(urls)]
        turn += 1
        try:
            last, trouble = await _connect(answer, client, f"{url}/v1/completions", last)
        except httpx.HTTPError as error:
            trouble = f"{url}: {str(error) or type(error).__name__}"
            unreached = not answer.connections and isinstance(
                error, httpx.ConnectError | httpx.ConnectTimeout
            )
            if unreached and time.monotonic() > begun + reach:
                answer.error = f"no gateway could be reached in {reach:g} s ({trouble})"
                break
            await asyncio.sleep(PAUSE)
    return answer


async def _connect(answer: Answer, client: httpx.AsyncClient, url: str, last: str) -> tuple[str, str]:
    """One connection; gives the last event's id, and what was wrong if it is worth another try."""
    headers = {"x-request-id": answer.ask.name, "x-tandem-resumable": "1", "x-tandem-debug": "1"}
    if last:
        headers["last-event-id"] = last
    async with client.stream("POST", url, json=answer.ask.body, headers=headers) as response:
        if response.status_code != 200:
            await response.aread()
            refusal = f"{response.status_code}: {_message(response)}"
            if response.status_code in (429, 503):
                await asyncio.sleep(PAUSE)
                return last, refusal
            answer.status, answer.error = response.status_code, refusal
            return last, ""
        answer.connections += 1
        return await _stream(answer, response, last), ""


async def _stream(answer: Answer, response: httpx.Response, last: str) -> str:
    """Take events in until the stream ends or breaks off; gives the last one's id."""
    event_id = last
    try:
        async for line in response.aiter_lines():
            if line.startswith("id: "):
                event_id = line.removeprefix("id: ")
            elif line.startswith("data: {"):
                last = _event(answer, json.loads(line.removeprefix("data: ")), event_id, last)
            elif line.startswith(": tandem "):
                answer.recoveries = json.loads(line.removeprefix(": tandem "))["recoveries"]
            elif line == "data: [DONE]":
                answer.done = True
    except httpx.HTTPError:
        return last
    return last


def _message(response: httpx.Response) -> str:
    try:
        return str(response.json()["error"]["message"])
    except (ValueError, KeyError, TypeError):
        return response.text[:200]


def _event(answer: Answer, body: dict[str, Any], event_id: str, last: str) -> str:
    """Take one event in; gives the position after it."""
    if "error" in body:
        answer.error = str(body["error"]["message"])
        return last
    if body.get("usage"):
        answer.tokens = body["usage"]["completion_tokens"]
    for choice in body["choices"]:
        index = choice["index"]
        if index in answer.ends or _counts(event_id) < _counts(last):
            answer.repeated += 1
        answer.texts[index] = answer.texts.get(index, "") + choice["text"]
        if "logprobs" in answer.ask.body:
            _log(answer, index, choice.get("logprobs"))
        if choice["finish_reason"]:
            answer.ends[index] = choice["finish_reason"]
        answer.times.append(time.monotonic())
    return event_id


def _log(answer: Answer, index: int, logs: dict[str, Any] | None) -> None:
    """Take the log-probabilities of an event in, which must be there."""
    if logs is None:
        answer.error = "it was asked for log-probabilities and has none"
        return
    columns = logs["tokens"], logs["token_logprobs"], logs["top_logprobs"]
    answer.logs.setdefault(index, []).extend(Token(*row) for row in zip(*columns, strict=True))


def _counts(event_id: str) -> int:
    """Tokens of all choices at a position; what a client has can only grow."""
    where = event_id.rpartition(":")[2]
    return sum(int(part.rstrip(".") or 0) for part in where.split(",")) if where else 0
