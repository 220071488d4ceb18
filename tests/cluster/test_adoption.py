"""A controller that begins among instances that are slow: whoever has requests is asked again, not killed."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace

import pytest

from cluster.config import Config
from cluster.controller import Controller
from cluster.memo import Memo
from cluster.pool import PATIENCE
from engine.errors import InstanceDied, Overloaded
from tests.cluster.doubles import until
from tests.cluster.made_up import CONFIG, CONTROL, Fleet, MadeUp, controlling, run, seen
from tests.engine.mutants import mutate


def calling(seconds: float) -> Config:
    """Settings under which a call may take so long, and an instance be silent four times as long."""
    return CONFIG.model_copy(update={"control": CONTROL.model_copy(update={"call_timeout": seconds})})


QUICK, PATIENT = calling(0.05), calling(0.5)
THREE = ["decode-0", "decode-1", "prefill-0"]


class Slow:
    """Instances of `names` whose memo cannot be had until `enough`, or for `calls` calls."""

    def __init__(self, fleet: Fleet, names: Sequence[str], calls: int | None = None) -> None:
        self.enough = asyncio.Event()
        self.again = asyncio.Event()
        self.asked = 0
        self._calls = calls
        for name in names:
            self._slow(fleet[name])

    def _slow(self, one: MadeUp) -> None:
        memo = one.memo

        async def slow() -> tuple[bytes, str]:
            self.asked += 1
            if self.asked > 1:
                self.again.set()
            if self._calls is not None and self.asked > self._calls:
                self.enough.set()
            if not self.enough.is_set():
                raise Overloaded(f"instance {one.name} did not answer memo in time")
            return await memo()

        one.memo = slow  # type: ignore[method-assign]


async def served(fleet: Fleet) -> None:
    """An earlier controller has started them, and is gone."""
    async with controlling(fleet, QUICK) as first:
        await seen(first, "ready", 3)


async def polled(controller: Controller, name: str, times: int = 3) -> None:
    """Until an instance has been asked for its status so often: the pools were looked at as often."""
    member = next(pool.members[name] for pool in controller.pools.values() if name in pool.members)
    for _ in range(times):
        member.polled.clear()
        await member.polled.wait()


async def with_one_late() -> tuple[list[str], list[str], list[str]]:
    """What was made while decode-0 was late and what in the end; and what was done to it."""
    fleet = Fleet()
    await served(fleet)
    fleet["decode-0"].run("a")
    slow = Slow(fleet, ["decode-0"])
    async with controlling(fleet, PATIENT) as second:
        await seen(second, "ready", 2)
        await polled(second, "decode-1")
        meanwhile = sorted(fleet.made)
        slow.enough.set()
        await seen(second, "adopted", subject="decode-0")
        await seen(second, "ready", 3)
        await polled(second, "decode-1")
        return meanwhile, sorted(fleet.made), fleet["decode-0"].calls


def test_one_that_is_late_is_adopted_when_it_answers_and_nothing_is_started_for_it() -> None:
    async def test() -> None:
        assert await with_one_late() == (THREE, THREE, [])

    run(test())


def test_mutant_a_controller_that_does_not_wait_starts_one_too_many(monkeypatch: pytest.MonkeyPatch) -> None:
    mutate(monkeypatch, Controller, "_reconcile", "if not self._adoption.late:", "if True:")

    async def test() -> None:
        meanwhile, *_ = await with_one_late()
        assert meanwhile == ["decode-0", "decode-1", "decode-2", "prefill-0"]

    run(test())


def test_one_that_stays_silent_is_killed_and_replaced() -> None:
    async def test() -> None:
        fleet = Fleet()
        await served(fleet)
        slow = Slow(fleet, ["decode-0"])
        async with controlling(fleet, QUICK) as second:
            await seen(second, "ready", subject="decode-2")
            assert fleet["decode-0"].calls == ["kill"]
            assert slow.asked > PATIENCE

    run(test())


def test_one_that_is_dead_is_not_waited_for() -> None:
    async def test() -> None:
        fleet = Fleet()
        await served(fleet)

        async def gone() -> tuple[bytes, str]:
            raise InstanceDied("killed by signal 9")

        fleet["decode-0"].memo = gone  # type: ignore[method-assign]
        async with controlling(fleet) as second:
            await seen(second, "ready", subject="decode-2")

    run(test())


def test_while_none_answers_the_controller_waits_for_the_first_memo() -> None:
    """Without one it would not know the targets, and be fenced by what has an older controller's number."""

    async def test() -> None:
        fleet = Fleet()
        async with controlling(fleet, QUICK) as first:
            await seen(first, "ready", 3)
            first.scale("decode", 3)
            await seen(first, "ready", 4)
            for name in ("decode-0", "prefill-0"):
                await polled(first, name)
        slow = Slow(fleet, list(fleet.made), calls=3 * len(fleet.made))
        async with controlling(fleet, PATIENT) as second:
            assert slow.enough.is_set()
            await seen(second, "ready", 4)
            assert second.generation == first.generation + 1
            assert second.pools["decode"].target == 3
            assert len(fleet.made) == 4 and not second.fenced
            assert not any(one.calls for one in fleet.made.values())

    run(test())


def test_settings_are_changed_without_killing_one_that_is_slow() -> None:
    async def test() -> None:
        fleet = Fleet()
        async with controlling(fleet, PATIENT) as controller:
            await seen(controller, "ready", 3)
            fleet["decode-0"].run("a")
            slow = Slow(fleet, ["decode-0"])
            await controller.renew({"scheduler.crowded_below": 2.0})
            slow.enough.set()
            await seen(controller, "adopted", 3)
            await seen(controller, "ready", 6)
            assert controller.config.scheduler.crowded_below == 2.0
            assert sorted(fleet.made) == THREE and not fleet["decode-0"].calls

    run(test())


def test_one_that_is_started_while_settings_change_is_adopted_too() -> None:
    """Nobody would ever end it else."""

    async def test() -> None:
        fleet = Fleet()
        async with controlling(fleet, PATIENT) as controller:
            await seen(controller, "ready", 3)
            slow = Slow(fleet, ["decode-0"])
            renewing = asyncio.create_task(controller.renew({"scheduler.crowded_below": 2.0}))
            await until(lambda: slow.asked)
            controller.scale("prefill", 2)
            await until(lambda: "prefill-1" in fleet.made)
            slow.enough.set()
            await renewing
            await seen(controller, "adopted", 4)
            await seen(controller, "ready", 7)
            assert fleet.alive == sorted([*THREE, "prefill-1"])

    run(test())


def test_settings_change_though_who_was_started_meanwhile_cannot_be_found() -> None:
    async def test() -> None:
        fleet = Fleet()
        async with controlling(fleet, PATIENT) as controller:
            await seen(controller, "ready", 3)
            find, looks = fleet.existing, iter([True, False])

            async def existing() -> list[MadeUp]:
                if next(looks):
                    return await find()
                raise ConnectionError("Ray's head is away")

            fleet.existing = existing  # type: ignore[method-assign]
            await controller.renew({"scheduler.crowded_below": 2.0})
            await seen(controller, "ready", 6)
            fleet.existing = find  # type: ignore[method-assign]
            controller.scale("prefill", 2)
            await seen(controller, "ready", 7)

    run(test())


def test_a_late_one_has_the_role_that_it_says_and_the_mark_that_it_had() -> None:
    async def test() -> None:
        fleet = Fleet()
        await served(fleet)
        for one in fleet.made.values():
            memo = replace(Memo.from_bytes(one.left), marked=("decode-0",))
            one.left = replace(memo, targets={"prefill": 2, "decode": 1}).to_bytes()
        fleet["decode-0"].role = "prefill"
        slow = Slow(fleet, ["decode-0"])
        async with controlling(fleet, PATIENT) as second:
            await seen(second, "ready", 2)
            await polled(second, "decode-1")
            slow.enough.set()
            assert (await seen(second, "replaced", subject="decode-0")).reason.startswith("by prefill-1")
            assert fleet.alive == ["decode-1", "prefill-0", "prefill-1"]

    run(test())


def test_a_controller_that_ends_while_it_waits_kills_nobody() -> None:
    async def test() -> None:
        fleet = Fleet()
        await served(fleet)
        slow, before = Slow(fleet, list(fleet.made)), asyncio.all_tasks()
        controller = Controller(QUICK, fleet, version=fleet.version)
        starting = asyncio.create_task(controller.start())
        await slow.again.wait()
        starting.cancel()
        await asyncio.gather(starting, return_exceptions=True)
        await controller.close()
        assert fleet.alive == THREE
        assert asyncio.all_tasks() <= before, "nobody asks on"

    run(test())
