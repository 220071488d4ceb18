"""Watching an instance through Ray's calls, which an actor of the test answers."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from cluster import instance_handle
from cluster.instance_handle import InstanceHandle
from engine.errors import InstanceDied


class Method:
    def __init__(self, answer: Callable[..., Any]) -> None:
        self.remote = answer


class Actor:
    """Is asked `lives` times, and then dies. An older one's call has no bound."""

    def __init__(self, lives: int, *, older: bool = False) -> None:
        self.asked: list[tuple[float, ...]] = []
        self._lives = lives
        self._older = older
        self.lifetime = Method(self._lifetime)

    def _lifetime(self, *within: float) -> asyncio.Future[None]:
        if self._older and within:
            raise TypeError("too many positional arguments")  # as Ray does, before it calls
        self.asked.append(within)
        answer: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        if len(self.asked) > self._lives:
            answer.set_exception(InstanceDied("killed by the test"))
        else:
            answer.set_result(None)
        return answer


@pytest.mark.parametrize(
    ("older", "asked"),
    [(False, [(instance_handle.WATCH,)] * 4), (True, [()])],
    ids=["now", "an older version"],
)
def test_a_watch_asks_again_and_again_until_the_death(older: bool, asked: list[tuple[float, ...]]) -> None:
    actor = Actor(0 if older else 3, older=older)

    async def watch() -> None:
        handle = InstanceHandle("decode-0", create=lambda: actor)  # type: ignore[arg-type, return-value]
        async with asyncio.timeout(10):
            await handle.lifetime()

    with pytest.raises(InstanceDied, match="killed by the test"):
        asyncio.run(watch())
    assert actor.asked == asked
