"""Tells a hung instance from a busy one by its beats, which a thread of its own answers.

    no beat for silence_timeout              the process is stopped, or out of reach
    the same, and it waits for CPU or disk   starved: it is given time, but not for ever
    a step longer than the beat allows it    the process lives, its engine does not get on
    a long step within its limit             busy: nothing happens

A status brings a beat with it; an instance is asked for one only when no status has come. Of a death Ray
tells at once; this is for those that neither live nor die.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Protocol

from cluster import control_pb2 as pb
from cluster.config import ControlConfig
from engine.errors import InstanceDied, TandemError

STARVED = 10
"""Times silence_timeout after which it makes no difference that a silent process was starved."""


class Beating(Protocol):
    async def beat(self) -> bytes: ...


class Told:
    """An instance's beats: the one that its last status brought, or one that it is asked for.

    `age` is how old the last one was when it was given, in seconds.
    """

    def __init__(self, instance: Beating) -> None:
        self._instance = instance
        self._beat: pb.Beat | None = None
        self._at = 0.0
        self.age = 0.0

    def tell(self, beat: pb.Beat) -> None:
        """A status has brought this."""
        self._beat, self._at = beat, time.monotonic()

    async def beat(self) -> pb.Beat:
        beat, self._beat = self._beat, None
        if beat is not None:
            self.age = time.monotonic() - self._at
            return beat
        beat = pb.Beat.FromString(await self._instance.beat())
        self.age = 0.0
        return beat


class _Silence:
    """Seconds without a beat, of which those that the instance was starved are no fault of its own."""

    def __init__(self, limit: float, starved: Callable[[float], float]) -> None:
        self._limit = limit
        self._starved = starved
        self._excused = 0.0
        self._counts = False
        self.seconds = 0.0

    def broken(self, since: float) -> None:
        """There was a beat, so many seconds ago."""
        self.seconds, self._excused, self._counts = since, 0.0, False

    def goes_on(self, seconds: float) -> None:
        excused = self._starved(seconds)
        # What it tells first is of the time since an earlier silence.
        self._excused += excused if self._counts else 0.0
        self._counts = True
        self.seconds += seconds

    @property
    def too_long(self) -> bool:
        return self.seconds - self._excused >= self._limit or self.seconds >= STARVED * self._limit


async def hung(
    instance: Told, config: ControlConfig, starved: Callable[[float], float] = lambda seconds: 0.0
) -> str:
    """Returns when the instance must be taken for dead, with the reason; not for one that has died.

    `starved` tells for how many of the last seconds it could not run, as `Starvation` does. Only time in
    which this process itself ran is counted: a controller that was stopped for a minute finds its instances
    silent for no longer than a beat.
    """
    silence = _Silence(config.silence_timeout, starved)
    while True:
        asked = asyncio.ensure_future(instance.beat())
        try:
            while not silence.too_long:
                passed = await _passed(asked, config.beat)
                if asked.done():
                    break
                silence.goes_on(passed)
            if not asked.done():
                return f"no beat for {silence.seconds:.1f} s"
            beat = asked.result()
        except InstanceDied:
            await asyncio.Event().wait()
            raise
        except TandemError:
            # Out of reach for the moment; counts as silence.
            await asyncio.sleep(config.beat)
            silence.goes_on(config.beat)
            continue
        finally:
            asked.cancel()
        silence.broken(min(instance.age, config.beat))
        if beat.limit and beat.elapsed > beat.limit:
            return _stuck(beat)
        await asyncio.sleep(config.beat)


async def _passed(asked: asyncio.Future[pb.Beat], span: float) -> float:
    """Wait for a span of time at most; gives the seconds that count."""
    before = time.monotonic()
    await asyncio.wait([asked], timeout=span)
    return min(time.monotonic() - before, 2 * span)


def _stuck(beat: pb.Beat) -> str:
    what = f"step {beat.step} of {beat.tokens} tokens" if beat.tokens else "the engine, between two steps,"
    return f"{what} takes {beat.elapsed:.1f} s, more than the {beat.limit:.1f} s that it may"
