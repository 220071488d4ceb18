"""Errors as OpenAI's clients expect them: one body, one status per exception of engine/errors.py."""

from __future__ import annotations

import logging
from typing import Any

from engine.errors import InvalidKey, RequestError, TandemError

logger = logging.getLogger("tandem.gateway")

LONGEST_RETRY_AFTER = 120
"""Seconds: OpenAI's clients don't retry at all when they are told to wait longer."""


class MethodNotAllowed(RequestError):
    """The path exists, the method does not."""

    status = 405
    code = "method_not_allowed"


def error_body(error: TandemError) -> dict[str, Any]:
    """The JSON body. What is not the caller's doing says nothing of stacks, paths or instances."""
    message = error.message
    if error.status == 500:
        message = "the server could not finish the request; its log has the reason"
    # Elsewhere `param` names a setting of the server's own config.
    param = error.param if isinstance(error, RequestError) else None
    return {"error": {"message": clean(message), "type": error.kind, "param": param, "code": error.code}}


def error_headers(error: TandemError) -> dict[str, str]:
    headers = {}
    if error.retry_after is not None:
        headers["retry-after"] = str(min(LONGEST_RETRY_AFTER, error.retry_after))
    if isinstance(error, InvalidKey):
        headers["www-authenticate"] = "Bearer"
    if isinstance(error, RequestError) and error.status in (408, 409):
        headers["x-should-retry"] = "true"
    return headers


def as_tandem(error: BaseException) -> TandemError:
    """Whatever went wrong as an error of ours; what is not one is logged with its stack and answered 500."""
    if isinstance(error, TandemError):
        if error.status == 500:
            logger.error("request failed: %s: %s", type(error).__name__, error.message)
        return error
    logger.error("request failed unexpectedly", exc_info=error)
    return TandemError("unexpected error")


def clean(text: str) -> str:
    """Text that can be sent as UTF-8, whatever a client put into it."""
    return text.encode("utf-8", "replace").decode()
