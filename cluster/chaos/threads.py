"""Blocking calls in threads, which are waited for even if whoever asked for them is cancelled meanwhile."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")


async def to_its_end(call: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """What the call gives, from a thread. A thread cannot be cancelled: what it does would come too late for
    whoever undoes it. So a cancellation waits until the call is over, and gives way to an error of the call.
    """
    calling = asyncio.create_task(asyncio.to_thread(call, *args, **kwargs))
    try:
        return await asyncio.shield(calling)
    except asyncio.CancelledError:
        await asyncio.wait({calling})
        calling.result()
        raise
