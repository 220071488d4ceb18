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
import contextlib
from collections.abc import Callable
from typing import Protocol

from cluster import control_pb2 as pb
from cluster.config import ControlConfig
from engine.errors import InstanceDied, TandemError

STARVED = 10
"""Times silence_timeout after which it makes no difference that a silent process was starved."""


CLOSE = 1e-3
"""Seconds that are not waited for less than: a clock may not tell them apart."""


class Beating(Protocol):
    async def beat(self) -> bytes: ...


class Told:
    """An instance's beats: those that its statuses bring, or one that it is asked for when none comes within
    `patience` seconds.

    `age` is how old the last one was when it was given, in seconds.
    """

    def __init__(self, instance: Beating, patience: float = 0.0) -> None:
        self._instance = instance
        self._patience = patience
        self._beat: pb.Beat | None = None
        self._at = 0.0
        self._come = asyncio.Event()
        self.age = 0.0

    def tell(self, beat: pb.Beat) -> None:
        """A status has brought this."""
        self._beat, self._at = beat, asyncio.get_running_loop().time()
        self._come.set()

    @property
    def told(self) -> bool:
        """Whether a status has come since the last call of `beat`."""
        return self._beat is not None

    async def beat(self) -> pb.Beat:
        """Whichever comes first; at once if it has been told."""
        if not self.told:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._patience):
                    await self._come.wait()
        if not self.told:
            asked = asyncio.ensure_future(self._instance.beat())
            told = asyncio.ensure_future(self._come.wait())
            try:
                await asyncio.wait([asked, told], return_when=asyncio.FIRST_COMPLETED)
                if not told.done():
                    self.age = 0.0
                    return pb.Beat.FromString(asked.result())
            finally:
                for task in (asked, told):
                    task.cancel()
                await asyncio.gather(asked, told, return_exceptions=True)
        beat, self._beat = self._beat, None
        assert beat is not None
        self._come.clear()
        self.age = asyncio.get_running_loop().time() - self._at
        return beat


class _Silence:
    """Seconds without a beat, of which those that the instance was starved are no fault of its own.

    It is waited for in spans of a beat, the last of them just as long as it takes to reach the limit.
    """

    def __init__(self, config: ControlConfig, starved: Callable[[float], float]) -> None:
        self._limit, self._beat = config.silence_timeout, config.beat
        self._starved = starved
        self._excused = 0.0
        self._noticed = False
        self._late = False
        self.seconds = 0.0

    def broken(self, since: float) -> None:
        """There was a beat, so many seconds ago."""
        self.seconds, self._excused, self._noticed, self._late = since, 0.0, False, False

    def noticed(self) -> None:
        """From here on it is asked for how long the instance was starved; its first answer is of before."""
        if not self._noticed:
            self._starved(0.0)
        self._noticed = True

    async def wait(self, beat: asyncio.Future[pb.Beat] | None = None) -> None:
        """A span at most. Where this process was late itself, no more than a beat of that counts."""
        left = self._limit - (self.seconds - self._excused)
        span = min(self._beat, max(left, CLOSE)) if left > 0 else self._beat
        clock = asyncio.get_running_loop().time
        before = clock()
        if beat is None:
            await asyncio.sleep(span)
        else:
            await asyncio.wait([beat], timeout=span)
        passed = clock() - before
        self._late = passed > span + self._beat
        passed = min(passed, span + self._beat)
        self.seconds += passed
        if self._noticed:
            self._excused += self._starved(passed)

    @property
    def too_long(self) -> bool:
        """Who was late looks again first: an answer may lie there."""
        if self.seconds >= STARVED * self._limit:
            return True
        return self.seconds - self._excused >= self._limit and not self._late


async def hung(
    instance: Told, config: ControlConfig, starved: Callable[[float], float] = lambda seconds: 0.0
) -> str:
    """Returns when the instance must be taken for dead, with the reason; not for one that has died.

    That is silence_timeout after its last beat. `starved` tells for how many of the last seconds it could not
    run, as `Starvation` does. Only time in which this process itself ran is counted: a controller that was
    stopped for a minute finds its instances silent for no longer than a beat.
    """
    silence = _Silence(config, starved)
    while True:
        asked = asyncio.ensure_future(instance.beat())
        try:
            while not asked.done():
                await silence.wait(asked)
                if silence.too_long and not asked.done():
                    return f"no beat for {silence.seconds:.1f} s"
                if not asked.done():
                    silence.noticed()
            beat = asked.result()
        except InstanceDied:
            await asyncio.Event().wait()
            raise
        except TandemError:
            # Out of reach for the moment; counts as silence.
            silence.noticed()
            await silence.wait()
            if silence.too_long:
                return f"no beat for {silence.seconds:.1f} s"
            continue
        finally:
            asked.cancel()
        silence.broken(min(instance.age, config.beat))
        if beat.limit and beat.elapsed > beat.limit:
            return _stuck(beat)
        await silence.wait()


def _stuck(beat: pb.Beat) -> str:
    what = f"step {beat.step} of {beat.tokens} tokens" if beat.tokens else "the engine, between two steps,"
    return f"{what} takes {beat.elapsed:.1f} s, more than the {beat.limit:.1f} s that it may"
