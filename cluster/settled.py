"""Waits for calls over connections that somebody else may close."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

from engine.errors import Overloaded

T = TypeVar("T")


async def settled(work: Coroutine[Any, Any, T]) -> T:
    """The result of `work`. Raises Overloaded if it was cancelled from the inside.

    gRPC reports a closed channel as a cancellation, which would end the caller's task without a word.
    """
    task = asyncio.create_task(work)
    try:
        await asyncio.wait([task])
    finally:
        task.cancel()
    if task.cancelled():
        raise Overloaded("the connection was closed during the call; try again")
    return task.result()
