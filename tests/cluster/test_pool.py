"""What a pool does with instances that die, hang, do not start or were found: nothing waits for a kill."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest

from cluster import control_pb2 as pb
from cluster.controller import Controller
from cluster.memo import Memo
from cluster.pool import Pool
from engine.errors import Overloaded, TandemError
from tests.cluster.made_up import Fleet, MadeUp, controlling, run, seen
from tests.engine.mutants import mutate


def lose(one: MadeUp, how: str) -> None:
    if how == "died":
        one.die("killed by signal 9")
    else:
        one.present = pb.Beat(step=7, tokens=12, elapsed=3.5, limit=3.0)


def decodes(controller: Controller) -> set[str]:
    """Where twenty requests are placed."""
    asked = [pb.PlaceRequest(request_id=f"r{number}", prompt_tokens=9, max_tokens=9) for number in range(20)]
    return {controller.place(one).decode for one in asked}


async def lost_and_not_yet_killed(how: str) -> set[str]:
    """Where requests are placed while an instance that is lost is being killed."""
    fleet = Fleet()
    async with controlling(fleet) as controller:
        await seen(controller, "ready", 3)
        one, begun, end = fleet["decode-0"], asyncio.Event(), asyncio.Event()

        async def kill() -> None:
            begun.set()
            await end.wait()
            one.die("killed")

        one.kill = kill  # type: ignore[method-assign]
        lose(one, how)
        await begun.wait()
        placed = decodes(controller)
        if "decode-0" not in placed:
            await seen(controller, "ready", subject="decode-2")
        end.set()
        await seen(controller, "died", subject="decode-0")
    return placed


@pytest.mark.parametrize("how", ["died", "hung"])
def test_nothing_is_placed_at_a_lost_instance_while_it_is_killed_and_another_starts(how: str) -> None:
    async def test() -> None:
        assert await lost_and_not_yet_killed(how) == {"decode-1"}

    run(test())


@pytest.mark.parametrize("how", ["died", "hung"])
def test_mutant_who_forgets_it_when_it_is_dead_places_there(
    how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    mutate(monkeypatch, Pool, "_stay", "self._remove(member)\n", "pass\n")

    async def test() -> None:
        assert "decode-0" in await lost_and_not_yet_killed(how)

    run(test())


@pytest.mark.parametrize("how", ["died", "hung", "did not start"])
def test_one_that_cannot_be_killed_is_replaced_all_the_same(how: str) -> None:
    async def kill() -> None:
        raise RuntimeError("Ray is not there")

    def prepare(one: MadeUp) -> None:
        if one.name == "decode-0":
            one.kill = kill  # type: ignore[method-assign]
            one.error = TandemError("it is broken") if how == "did not start" else None

    async def test() -> None:
        fleet = Fleet()
        fleet.prepare = prepare
        async with controlling(fleet) as controller:
            if how != "did not start":
                await seen(controller, "ready", 3)
                lose(fleet["decode-0"], how)
            await seen(controller, "ready", subject="decode-2")
            assert set(controller.pools["decode"].members) == {"decode-1", "decode-2"}

    run(test())


def test_one_that_could_not_be_killed_as_it_started_is_when_it_is_ready() -> None:
    async def test() -> None:
        fleet, refused = Fleet(), asyncio.Event()

        def prepare(one: MadeUp) -> None:
            if one.name == "decode-1":
                one.loaded.clear()
                kill = one.kill

                async def not_yet() -> None:
                    one.kill = kill  # type: ignore[method-assign]
                    refused.set()
                    raise RuntimeError("Ray is not there")

                one.kill = not_yet  # type: ignore[method-assign]

        fleet.prepare = prepare
        async with controlling(fleet) as controller:
            await seen(controller, "ready", 2)
            controller.scale("decode", 1)
            await refused.wait()
            fleet["decode-1"].loaded.set()
            await fleet["decode-1"].dead.wait()
            assert set(controller.pools["decode"].members) == {"decode-0"}

    run(test())


def test_why_an_instance_died_is_told_before_another_is_started_for_it() -> None:
    async def test() -> None:
        fleet = Fleet()
        async with controlling(fleet) as controller:
            await seen(controller, "ready", 3)
            fleet["decode-0"].die("killed by signal 9")
            await seen(controller, "spawned", subject="decode-2")
            kinds = [event.kind for event in controller.events.after(0)]
            assert kinds[-2:] == ["died", "spawned"]

    run(test())


def test_a_first_status_that_is_late_is_asked_for_again() -> None:
    async def test() -> None:
        fleet = Fleet()

        def prepare(one: MadeUp) -> None:
            status, left = one.status, [Overloaded("no answer in time")] * 3

            async def late(generation: int | None = None, memo: bytes = b"") -> bytes:
                if left:
                    raise left.pop()
                return await status(generation, memo)

            one.status = late  # type: ignore[method-assign]

        fleet.prepare = prepare
        async with controlling(fleet) as controller:
            await seen(controller, "ready", 3)
            assert "start_failed" not in {event.kind for event in controller.events.after(0)}

    run(test())


def test_an_instance_that_has_a_newer_controller_when_it_is_ready_is_left_to_it() -> None:
    async def test() -> None:
        fleet = Fleet()
        fleet.prepare = lambda one: one.loaded.clear() if one.name == "decode-1" else None
        async with controlling(fleet) as old:
            await seen(old, "ready", 2)
            async with controlling(fleet) as new:
                await seen(new, "ready", 2)
                fleet["decode-1"].generation = new.generation
                fleet["decode-1"].loaded.set()
                await seen(new, "ready", subject="decode-1")
                assert old.fenced
                assert "kill" not in fleet["decode-1"].calls

    run(test())


# Instances that a controller finds may have requests before they are ready for it.


async def found(fleet: Fleet) -> None:
    """An earlier controller has started them, and is gone."""
    async with controlling(fleet) as first:
        await seen(first, "ready", 3)


def test_one_that_is_draining_when_it_is_found_gives_its_requests_away() -> None:
    async def test() -> None:
        fleet = Fleet()
        await found(fleet)
        one = fleet["decode-0"]
        one.run("a")
        one.state = "draining"
        async with controlling(fleet) as second:
            await seen(second, "drained", subject="decode-0")
            await one.dead.wait()
            assert one.calls.index("drain") < one.calls.index("stop")
            assert not one.running
            assert [(move.request_id, move.outcome) for move in second.migrations.listed("")] == [
                ("a", "committed")
            ]

    run(test())


def test_of_too_many_that_are_found_the_idlest_is_drained() -> None:
    async def test() -> None:
        fleet = Fleet()
        await found(fleet)
        fleet["decode-1"].run("a")
        for one in fleet.made.values():
            memo = Memo.from_bytes(one.left)
            one.left = replace(memo, targets={"prefill": 1, "decode": 1}).to_bytes()
        for name in ("decode-0", "decode-1"):
            fleet[name].loaded.clear()
        async with controlling(fleet) as second:
            await seen(second, "ready", subject="prefill-0")
            for _ in range(3):
                polled = second.pools["prefill"].members["prefill-0"].polled
                polled.clear()
                await polled.wait()
            for name in ("decode-0", "decode-1"):
                fleet[name].loaded.set()
            await seen(second, "drained", subject="decode-0")
            await fleet["decode-0"].dead.wait()
            assert fleet["decode-0"].calls == ["drain", "stop"]
            assert fleet["decode-1"].running and not fleet["decode-1"].calls

    run(test())
