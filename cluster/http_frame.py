"""What is the same for every route: request ids, keys, CORS, tenants' limits, and a last word on errors."""

from __future__ import annotations

import asyncio
import json
import re
import time
import uuid
from collections.abc import Mapping, Sequence

from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from cluster.access import Access
from cluster.openai_errors import MethodNotAllowed, as_tandem, error_body, error_headers
from engine.errors import (
    DeadlineExceeded,
    InvalidParameter,
    NotFound,
    RequestTooLarge,
    TandemError,
    UnsupportedMediaType,
)

_ID = re.compile(r"[A-Za-z0-9._:-]{1,128}")
_PREFLIGHT = (
    "Authorization, Content-Type, Last-Event-ID, X-Request-Id, X-Request-Timeout-Seconds, X-Tandem-Debug, "
    "X-Tandem-Resumable"
)
_LIMITS = (
    f"x-ratelimit-{what}-{of}" for of in ("requests", "tokens") for what in ("limit", "remaining", "reset")
)
_EXPOSED = ", ".join(("x-request-id", "openai-processing-ms", "retry-after", *_LIMITS))


def error_response(error: TandemError) -> Response:
    return json_response(error_body(error), status=error.status, headers=error_headers(error))


async def http_error(request: Request, error: Exception) -> Response:
    """Starlette's own refusals: no such path, no such method."""
    assert isinstance(error, HTTPException)
    path = request.url.path[:200]
    if error.status_code == 405:
        response = error_response(MethodNotAllowed(f"{request.method[:20]} is not allowed on {path}"))
        response.headers.update(error.headers or {})
        return response
    if error.status_code == 404:
        return error_response(NotFound(f"there is nothing at {path}"))
    return error_response(InvalidParameter(error.detail))


def json_response(
    body: Mapping[str, object], *, status: int = 200, headers: Mapping[str, str] | None = None
) -> Response:
    text = json.dumps(body, ensure_ascii=False, separators=(",", ":"))
    return Response(text, status_code=status, headers=dict(headers or {}), media_type="application/json")


def request_id(scope: Scope) -> str:
    """The id of the request at hand, the client's own if it sent one that is fit to be one."""
    return str(scope["state"]["request_id"])


def tenant(scope: Scope) -> str:
    """Whose key the request came with; "" for nobody in particular."""
    return str(scope["state"].get("tenant", ""))


class Frame:
    """Around the whole application. `access` knows who may come in."""

    def __init__(self, app: ASGIApp, *, access: Access, origins: Sequence[str]) -> None:
        self._app = app
        self._access = access
        self._origins = frozenset(origins)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        begun = time.perf_counter()
        headers = Headers(scope=scope)
        given = headers.get("x-request-id", "")
        identity = given if _ID.fullmatch(given) else f"r-{uuid.uuid4().hex}"
        scope.setdefault("state", {})["request_id"] = identity
        allowed = self._allowed(headers.get("origin", ""))
        known: str | None = None
        started = False

        async def answer(message: Message) -> None:
            nonlocal started
            if message["type"] == "http.response.start":
                started = True
                out = MutableHeaders(raw=message["headers"])
                out["x-request-id"] = identity
                out["openai-processing-ms"] = str(int((time.perf_counter() - begun) * 1000))
                out.update(allowed)
                if known is not None:
                    out.update(self._access.limits.headers(known))
            await send(message)

        try:
            if scope["method"] == "OPTIONS" and allowed:
                await _preflight()(scope, receive, answer)
                return
            known = self._access.tenant(scope["path"], headers.get("authorization", ""))
            scope["state"]["tenant"] = known
            await self._app(scope, receive, answer)
        except Exception as error:
            if started:
                raise
            await error_response(as_tandem(error))(scope, receive, answer)

    def _allowed(self, origin: str) -> dict[str, str]:
        """CORS headers for an origin on the list."""
        if not origin or not ({origin, "*"} & self._origins):
            return {}
        return {
            "access-control-allow-origin": origin,
            "access-control-expose-headers": _EXPOSED,
            "vary": "Origin",
        }


class BehindServe:
    """Serve's proxy names each request, hands the name on and puts it into the answer itself."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def answer(message: Message) -> None:
            if message["type"] == "http.response.start":
                del MutableHeaders(raw=message["headers"])["x-request-id"]
            await send(message)

        await self._app(scope, receive, answer)


def _preflight() -> Response:
    return Response(
        status_code=204,
        headers={
            "access-control-allow-methods": "GET, POST, OPTIONS",
            "access-control-allow-headers": _PREFLIGHT,
            "access-control-max-age": "600",
        },
    )


async def read_body(request: Request, limit: int, within: float | None = None) -> bytes:
    """The body, refused as soon as it is known to be above `limit` bytes. Raises RequestTooLarge, and
    DeadlineExceeded if it has not arrived after `within` seconds."""
    encoding = request.headers.get("content-encoding", "identity").lower()
    if encoding != "identity":
        raise UnsupportedMediaType(
            f"the content encoding {encoding[:50]!r} is not supported; send plain JSON"
        )
    too_large = RequestTooLarge(f"the body is above the limit of {limit} bytes (gateway.body_limit)")
    length = request.headers.get("content-length", "")
    if length.isascii() and length.isdigit() and int(length[:20]) > limit:
        raise too_large
    chunks = []
    size = 0
    try:
        async with asyncio.timeout(within):
            async for chunk in request.stream():
                size += len(chunk)
                if size > limit:
                    raise too_large
                chunks.append(chunk)
    except TimeoutError:
        raise DeadlineExceeded(f"the body did not arrive within {within:g} s") from None
    return b"".join(chunks)


def timeout_of(request: Request) -> float | None:
    """The client's own limit in seconds. Raises InvalidParameter."""
    given = request.headers.get("x-request-timeout-seconds")
    if given is None:
        return None
    try:
        seconds = float(given)
    except ValueError:
        seconds = -1.0
    if not 0 < seconds < float("inf"):
        raise InvalidParameter(
            "x-request-timeout-seconds must be a number above 0", param="x-request-timeout-seconds"
        )
    return seconds
