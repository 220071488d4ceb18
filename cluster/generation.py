"""Answers a completion or a chat: whole, or as a stream of events."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncGenerator, Coroutine
from dataclasses import dataclass
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from cluster import sse
from cluster.gateway_service import GatewayService
from cluster.http_frame import json_response, request_id, tenant, timeout_of
from cluster.job import Reader, Update
from cluster.openai import ChatBody, CompletionBody
from cluster.openai_answers import Answer, ChatAnswer, CompletionAnswer
from cluster.openai_errors import as_tandem, error_body
from cluster.resume import position, reconnection, wants_ids
from engine.errors import TandemError


@dataclass(frozen=True, slots=True)
class _Options:
    usage: bool
    running_usage: bool
    debug: bool
    ids: bool


async def generate(service: GatewayService, http: Request, body: CompletionBody | ChatBody) -> Response:
    """The response; raises a TandemError for what fails before anything was answered.

    When the client leaves, its run is dropped on every instance, unless it may come back.
    """
    identity = request_id(http.scope)
    answer = _answer(service, identity, body)
    try:
        asked = reconnection(http, answer.id)
        whose = tenant(http.scope)
        reader = (await service.begin(body, identity, timeout_of(http), asked, whose)).reader(
            asked.seen, answer.had
        )
    except TandemError as error:
        service.metrics.refused(error, tenant(http.scope) or body.user or "")
        raise _in_terms_of(body, error) from error
    options = _options(body, http)
    leaving = asyncio.create_task(sse.disconnected(http.receive))
    try:
        if body.stream:
            # Until something has come, a failure can still be answered with a status of its own.
            first = await _or_left(reader.next(service.config.keepalive), leaving)
            events = _events(service.config.keepalive, reader, answer, options, first)
            headers = _debug_headers(reader, options)
            # The request itself is over before that, and what ended it is the last that its client reads.
            within = service.config.stream_timeout + LAST_WORDS
            return sse.EventStream(events, headers, closed=reader.close, within=within)
        return await _whole(reader, answer, options, leaving)
    except ClientLeft:
        reader.close()
        return Response(status_code=CLIENT_LEFT)
    except TandemError as error:
        reader.close(error)
        raise _in_terms_of(body, error) from error
    except BaseException:
        reader.close(TandemError("unexpected error"))
        raise
    finally:
        leaving.cancel()


def _answer(service: GatewayService, identity: str, body: CompletionBody | ChatBody) -> Answer:
    asked = (identity, service.model, service.tokenizer)
    logprobs = body.alternatives is not None
    if isinstance(body, ChatBody):
        return ChatAnswer(*asked, logprobs=logprobs, tools=bool(body.offered()))
    return CompletionAnswer(*asked, logprobs=logprobs)


def _options(body: CompletionBody | ChatBody, http: Request) -> _Options:
    asked = body.stream_options
    usage = bool(asked and asked.include_usage)
    return _Options(
        usage=usage,
        running_usage=usage and bool(asked and asked.continuous_usage_stats),
        debug=http.headers.get("x-tandem-debug") == "1",
        ids=wants_ids(http),
    )


LAST_WORDS = 5.0
"""Seconds that a client may take to read why its stream was ended, beyond `gateway.stream_timeout`."""

CLIENT_LEFT = 499
"""Never arrives: whoever it is for has left."""


class ClientLeft(Exception):
    """Nobody waits for the answer any more."""


async def _or_left(update: Coroutine[Any, Any, Update | None], leaving: asyncio.Task[None]) -> Update | None:
    """The update, unless the client leaves first: then raises ClientLeft."""
    task = asyncio.ensure_future(update)
    try:
        await asyncio.wait([task, leaving], return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise ClientLeft
        return task.result()
    finally:
        task.cancel()


async def _whole(reader: Reader, answer: Answer, options: _Options, leaving: asyncio.Task[None]) -> Response:
    while update := await _or_left(reader.next(), leaving):
        for index, pieces in update:
            choice = reader.choices[index]
            choice.text += "".join(piece.text for piece in pieces)
            choice.pieces += pieces
            choice.finish, choice.stop_reason = pieces[-1].finish or None, pieces[-1].stop_reason
    reader.close()
    body = answer.whole_body(reader.choices, reader.job.usage())
    if options.debug:
        body["tandem"] = _debug(reader)
    return json_response(body, headers=_debug_headers(reader, options))


async def _events(
    keepalive: float, reader: Reader, answer: Answer, options: _Options, update: Update | None
) -> AsyncGenerator[bytes]:
    """The stream, from its first update on."""

    def where() -> str | None:
        """The id of an event after which the client has all that it was given; only who asked has ids."""
        return f"{answer.id}:{position(reader.choices)}" if options.ids else None

    try:
        told = time.monotonic()
        while update is None or update:
            if update is None or time.monotonic() - told >= keepalive:
                told = time.monotonic()
                yield sse.PING
            cut = [(index, part) for index, pieces in update or () for part in answer.parts(pieces)]
            for index, pieces in cut:
                first = index not in reader.begun
                bodies = answer.chunk_bodies(index, reader.choices[index], pieces, first=first)
                before = where() if len(bodies) > 1 else None
                reader.given(index, pieces)
                for number, body in enumerate(bodies, 1):
                    told = time.monotonic()
                    if options.usage:
                        body["usage"] = reader.job.usage().body() if options.running_usage else None
                    # Only the last event of these tokens says that the client has them.
                    yield sse.event(body, where() if number == len(bodies) else before)
            update = await reader.next(keepalive)
        if options.usage:
            body = answer.usage_chunk(reader.job.usage())
            if options.debug:
                body["tandem"] = _debug(reader)
            yield sse.event(body, where())
        if options.debug:
            yield sse.comment(f"tandem {json.dumps(_debug(reader))}")
    except Exception as failure:
        error = as_tandem(failure)
        reader.close(error)
        yield sse.event(error_body(error))
    yield sse.DONE


def _debug(reader: Reader) -> dict[str, Any]:
    """Where a request ran and how fast; of several prompts, the first."""
    progress = reader.job.runs[0].progress
    return {
        "prefill": progress.prefill,
        "decode": progress.decode,
        "ttft_ms": _milliseconds(progress.ttft),
        "tpot_ms": _milliseconds(progress.tpot),
        "recoveries": progress.recoveries,
    }


def _debug_headers(reader: Reader, options: _Options) -> dict[str, str]:
    """Of a stream, the instances that are known when it begins."""
    progress = reader.job.runs[0].progress
    if not options.debug or not progress.prefill:
        return {}
    return {"x-tandem-prefill-instance": progress.prefill, "x-tandem-decode-instance": progress.decode}


def _milliseconds(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds * 1000, 2)


def _in_terms_of(body: CompletionBody | ChatBody, error: TandemError) -> TandemError:
    """An instance knows prompts only; a chat's client knows its messages."""
    if error.param == "prompt" and body.subject != "prompt":
        return type(error)(error.message, param=body.subject)
    return error
