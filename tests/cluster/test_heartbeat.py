"""Who is hung and who is only busy."""

from __future__ import annotations

import asyncio
import math
import random
import selectors
import time
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from cluster import control_pb2 as pb
from cluster.config import ControlConfig
from cluster.heartbeat import CLOSE, STARVED, Told, _Silence, hung
from engine.errors import InstanceDied, Overloaded, TandemError
from tests.cluster.doubles import until
from tests.engine.mutants import mutate

CONFIG = ControlConfig(beat=0.01, silence_timeout=0.06)


class Instance:
    """Answers beats as `answer` says; `beats` counts them."""

    def __init__(self, answer: Callable[[int], pb.Beat | TandemError | None]) -> None:
        self._answer = answer
        self.beats = 0
        self.enough = asyncio.Event()

    async def beat(self) -> bytes:
        self.beats += 1
        if self.beats == 20:
            self.enough.set()
        answer = self._answer(self.beats)
        if answer is None:
            await asyncio.Event().wait()
        if isinstance(answer, TandemError):
            raise answer
        assert isinstance(answer, pb.Beat)
        return answer.SerializeToString()


async def verdict(instance: Instance) -> str | None:
    """Why it is hung; None if it is not after twenty beats."""
    watching = asyncio.create_task(hung(Told(instance), CONFIG))
    enough = asyncio.create_task(instance.enough.wait())
    async with asyncio.timeout(10):
        await asyncio.wait([watching, enough], return_when=asyncio.FIRST_COMPLETED)
    for task in (watching, enough):
        task.cancel()
    outcome, _ = await asyncio.gather(watching, enough, return_exceptions=True)
    return outcome if isinstance(outcome, str) else None


def asked(answer: Callable[[int], pb.Beat | TandemError | None]) -> str | None:
    async def ask() -> str | None:
        return await verdict(Instance(answer))

    return asyncio.run(ask())


def test_a_process_that_stops_answering_is_hung() -> None:
    reason = asked(lambda number: pb.Beat() if number < 4 else None)
    assert reason is not None
    assert reason.startswith("no beat for 0.")


@pytest.mark.parametrize(
    ("share", "least", "most"),
    [(1.0, STARVED, STARVED), (0.5, 1.8, 4), (0.0, 1, 1)],
    ids=["always", "half the time", "never"],
)
def test_one_that_waits_for_a_cpu_is_given_time(share: float, least: float, most: float) -> None:
    async def test() -> float:
        silent = Told(Instance(lambda number: None), CONFIG.beat / 2)
        async with asyncio.timeout(10):
            reason = await hung(silent, CONFIG, lambda seconds: share * seconds)
        return float(reason.split()[3])

    # The reason is rounded to a tenth of a second; a span counts twice at most where this process is late.
    silent = asyncio.run(test())
    assert least * CONFIG.silence_timeout - 0.05 <= silent
    assert silent <= most * CONFIG.silence_timeout + 4 * CONFIG.beat + 0.05


def test_so_is_one_that_stays_out_of_reach() -> None:
    assert asked(lambda number: Overloaded("no route")) is not None


def test_a_gap_that_is_shorter_than_the_bound_is_forgiven() -> None:
    assert asked(lambda number: pb.Beat() if number % 3 == 0 else Overloaded("no route")) is None


def test_a_long_step_within_its_limit_is_busy() -> None:
    assert asked(lambda number: pb.Beat(step=1, tokens=512, elapsed=25.0, limit=30.0)) is None


def test_a_step_beyond_its_limit_is_hung() -> None:
    assert asked(lambda number: pb.Beat(step=1, tokens=1, elapsed=3.1, limit=3.0)) is not None


def test_an_idle_engine_is_well() -> None:
    assert asked(lambda number: pb.Beat(step=9)) is None


def test_who_is_told_by_statuses_is_asked_only_when_they_stop() -> None:
    async def test() -> None:
        instance = Instance(lambda number: None)
        beats = Told(instance)
        beats.tell(pb.Beat(step=1))
        watching = asyncio.create_task(hung(beats, ControlConfig(beat=0.03, silence_timeout=0.06)))
        for step in range(30):
            beats.tell(pb.Beat(step=step))
            await asyncio.sleep(0.005)
        assert instance.beats == 0
        async with asyncio.timeout(10):
            assert (await watching).startswith("no beat for 0.")
        assert instance.beats == 1

    asyncio.run(test())


def test_a_status_tells_of_a_step_beyond_its_limit() -> None:
    async def test() -> None:
        beats = Told(Instance(lambda number: pb.Beat()))
        beats.tell(pb.Beat(step=1, tokens=1, elapsed=3.1, limit=3.0))
        async with asyncio.timeout(10):
            assert (await hung(beats, CONFIG)).startswith("step 1 of 1 tokens")

    asyncio.run(test())


def test_of_one_that_died_others_tell() -> None:
    async def test() -> None:
        watching = asyncio.create_task(hung(Told(Instance(lambda number: InstanceDied("killed"))), CONFIG))
        done, _ = await asyncio.wait([watching], timeout=0.2)
        assert not done
        watching.cancel()
        with pytest.raises(asyncio.CancelledError):
            await watching

    asyncio.run(test())


def test_a_controller_that_was_stopped_itself_blames_nobody() -> None:
    async def test() -> None:
        instance = Instance(lambda number: pb.Beat())
        watching = asyncio.create_task(hung(Told(instance), CONFIG))
        await until(lambda: instance.beats >= 3)
        time.sleep(0.2)  # noqa: ASYNC251  (the whole process stands still)
        await asyncio.wait([asyncio.create_task(instance.enough.wait())], timeout=10)
        assert not watching.done()
        watching.cancel()

    asyncio.run(test())


# On a virtual clock


class _Leaps(selectors.DefaultSelector):
    """Waits for nothing: the time that it would take has passed at once."""

    now = 0.0

    def select(self, timeout: float | None = None) -> Any:
        self.now += timeout or 0.0
        return super().select(0)


class VirtualLoop(asyncio.SelectorEventLoop):
    def __init__(self) -> None:
        self._leaps = _Leaps()
        super().__init__(self._leaps)

    def time(self) -> float:
        return self._leaps.now


def virtually(test: Callable[[], Coroutine[Any, Any, None]]) -> None:
    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        runner.run(test())


class Stopping:
    """Answers each call in `rtt` seconds until `dies`, then none any more."""

    def __init__(self, dies: float, rtt: float) -> None:
        self._dies, self._rtt = dies, rtt

    async def beat(self) -> bytes:
        clock = asyncio.get_running_loop().time
        if clock() + self._rtt > self._dies:
            await asyncio.Event().wait()
        await asyncio.sleep(self._rtt)
        return pb.Beat(step=1).SerializeToString()


async def polls(instance: Stopping, beats: Told, every: float) -> None:
    """As a pool does."""
    while True:
        await asyncio.sleep(every)
        beats.tell(pb.Beat.FromString(await instance.beat()))


DEATHS = [round(2.0 + 0.011 * number, 3) for number in range(50)]
CONTROL = ControlConfig()


async def late(rtt: float, told: bool) -> float:
    """Seconds from a death to its verdict, at most; deaths fall anywhere between two beats."""
    loop, longest = asyncio.get_running_loop(), 0.0
    for dies in DEATHS:
        begun = loop.time()
        instance = Stopping(begun + dies, rtt)
        beats = Told(instance, CONTROL.beat / 2)
        telling = asyncio.create_task(polls(instance, beats, CONTROL.beat)) if told else None
        assert (await hung(beats, CONTROL)).startswith("no beat for 1.")
        if telling is not None:
            telling.cancel()
        after = loop.time() - begun - dies
        # Its last beat was given a round, and the time for a status to come, before it stopped, at most.
        assert after > CONTROL.silence_timeout - 1.5 * CONTROL.beat - 2 * rtt - CLOSE
        longest = max(longest, after)
    return longest


@pytest.mark.parametrize("rtt", [0.0, 0.003, 0.1])
@pytest.mark.parametrize("told", [True, False], ids=["told", "asked"])
def test_whenever_a_process_stops_it_is_noticed_within_one_and_a_half_seconds(rtt: float, told: bool) -> None:
    async def test() -> None:
        assert CONTROL.silence_timeout - 0.03 < await late(rtt, told) <= 1.5

    virtually(test)


def test_mutant_one_that_does_not_count_the_time_until_it_asks_is_late(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    mutate(monkeypatch, _Silence, "wait", "+= passed\n", "+= passed if self._noticed else 0.0\n")

    async def test() -> None:
        assert await late(0.003, told=True) > 1.5

    virtually(test)


@pytest.mark.parametrize("pause", [0.5, 1.1])
def test_who_pauses_for_less_than_the_bound_is_left_alone(pause: float) -> None:
    """Each pause begins just after a beat, or just before the next one."""

    class Pausing(Stopping):
        async def beat(self) -> bytes:
            await asyncio.sleep(pause if rng.random() < 0.3 else rng.random() * 0.2)
            return pb.Beat(step=1).SerializeToString()

    rng = random.Random(7)

    async def test() -> None:
        instance = Pausing(math.inf, 0.0)
        beats = Told(instance, CONTROL.beat / 2)
        telling = asyncio.create_task(polls(instance, beats, CONTROL.beat))
        watching = asyncio.create_task(hung(beats, CONTROL))
        await asyncio.sleep(600.0)
        assert not watching.done()
        watching.cancel()
        telling.cancel()

    virtually(test)


@pytest.mark.parametrize("rtt", [0.003, 0.1])
@pytest.mark.parametrize("patience", [CONTROL.beat / 2, 0.0], ids=["patient", "mutant: asks at once"])
def test_one_that_is_well_is_neither_asked_nor_looked_at(rtt: float, patience: float) -> None:
    """To look at the threads of two processes costs milliseconds, and would be done with every beat."""

    async def test() -> None:
        looked: list[float] = []

        def starved(seconds: float) -> float:
            looked.append(seconds)
            return 0.0

        silent = Instance(lambda number: pb.Beat())
        beats = Told(silent, patience)
        telling = asyncio.create_task(polls(Stopping(math.inf, rtt), beats, CONTROL.beat))
        watching = asyncio.create_task(hung(beats, CONTROL, starved))
        await asyncio.sleep(100.0)
        assert not watching.done()
        assert not looked
        assert (silent.beats <= 1) == bool(patience)
        watching.cancel()
        telling.cancel()

    virtually(test)


def test_a_status_counts_while_the_answer_to_a_beat_is_awaited() -> None:
    async def test() -> None:
        beats = Told(Stopping(0.0, 0.0))
        watching = asyncio.create_task(hung(beats, CONTROL))
        for _ in range(20):
            await asyncio.sleep(1.0)
            beats.tell(pb.Beat(step=1))
        assert not watching.done()
        told = asyncio.get_running_loop().time()
        await watching
        assert asyncio.get_running_loop().time() - told == pytest.approx(
            CONTROL.silence_timeout, abs=2 * CLOSE
        )

    virtually(test)


def test_a_watcher_that_comes_late_looks_again_before_it_blames() -> None:
    """The whole process stood still when the answer came, for as long as it takes to lose patience."""

    async def test() -> None:
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[bytes] = loop.create_future()
        beats = Told(Instance(lambda number: None))
        beats._instance.beat = lambda: answer  # type: ignore[method-assign, assignment, return-value]
        watching = asyncio.create_task(hung(beats, CONTROL))
        await asyncio.sleep(1.2)
        loop._leaps.now += 60.0  # type: ignore[attr-defined]
        loop.call_later(0.05, answer.set_result, pb.Beat(step=1).SerializeToString())
        await asyncio.sleep(0.2)
        assert not watching.done()
        watching.cancel()

    virtually(test)
