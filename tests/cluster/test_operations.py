"""What operators may do with one instance or one request, and what comes of it."""

from __future__ import annotations

import asyncio

import pytest

from cluster import control_pb2 as pb
from cluster.controller import Controller
from engine.errors import Conflict, InvalidParameter, NotFound, RefusedError
from global_scheduler.placement import PlacementSettings
from tests.cluster.doubles import until
from tests.cluster.made_up import CONFIG, CONTROL, Fleet, controlling, run, seen

NOW = CONFIG.model_copy(update={"control": CONTROL.model_copy(update={"drain_timeout": 0.1})})


def placed(controller: Controller) -> str:
    """Where a short request would decode."""
    assert isinstance(controller.scheduler.settings.placement, PlacementSettings)
    return controller.place(pb.PlaceRequest(request_id="short", prompt_tokens=3, max_tokens=3)).decode


def test_requests_are_listed_from_all_instances_and_found_by_the_clients_name() -> None:
    async def test() -> None:
        fleet = Fleet()
        async with controlling(fleet) as controller:
            await seen(controller, "ready", 3)
            fleet["decode-0"].run("mine~1-0", "mine~1-1")
            fleet["decode-1"].run("other~2-0")
            found = (await controller.operations.requests()).requests
            assert [(one.id, one.instance) for one in found] == [
                ("mine~1-0", "decode-0"), ("mine~1-1", "decode-0"), ("other~2-0", "decode-1")
            ]  # fmt: skip
            assert len((await controller.operations.requests("mine")).requests) == 2
            assert len((await controller.operations.requests("mine~1-0")).requests) == 1
            assert not (await controller.operations.requests("min")).requests

    run(test())


def test_a_request_is_moved_to_the_instance_that_was_named_and_the_move_is_remembered() -> None:
    async def test() -> None:
        fleet = Fleet()
        async with controlling(fleet) as controller:
            await seen(controller, "ready", 3)
            fleet["decode-0"].run("mine~1-0")
            moved = await controller.operations.migrate("mine", "decode-1")
            assert (moved.outcome, moved.source, moved.destination) == ("committed", "decode-0", "decode-1")
            assert fleet["decode-0"].calls == ["move mine~1-0 to host-of-decode-1:1"]
            (kept,) = controller.mover.migrations.listed()
            assert (kept.id, kept.cause, kept.stages, kept.downtime) == (1, "operator", 2, 0.02)
            (count,) = controller.status().migrations.counts
            assert (count.cause, count.outcome, count.count) == ("operator", "committed", 1)

    run(test())


def test_a_move_that_is_aborted_is_remembered_with_its_reason() -> None:
    async def test() -> None:
        fleet = Fleet()
        async with controlling(fleet) as controller:
            await seen(controller, "ready", 3)
            fleet["decode-0"].run("mine~1-0")
            fleet["decode-0"].stubborn = True
            moved = await controller.operations.migrate("mine~1-0", "decode-1")
            assert (moved.outcome, moved.detail) == ("aborted", "it will not")
            assert sum(controller.status().migrations.downtimes) == 0

    run(test())


def test_what_cannot_be_moved_is_refused_with_what_to_do() -> None:
    async def test() -> None:
        fleet = Fleet()
        async with controlling(fleet) as controller:
            await seen(controller, "ready", 3)
            fleet["decode-0"].run("mine~1-0", "twice~1-0", "twice~1-1")
            operations = controller.operations
            with pytest.raises(NotFound, match="get requests"):
                await operations.migrate("yours", "decode-1")
            for slip in ("decod-1", "decode_1"):
                with pytest.raises(NotFound, match=r"did you mean decode-1\?"):
                    await operations.migrate("mine", slip)
            for unlike in ("nope", "decode-7", ""):
                with pytest.raises(NotFound, match=f"named '{unlike}': see `tandem get instances`"):
                    await operations.drain(unlike, 0.0)
            with pytest.raises(RefusedError, match="runs on decode-0 already"):
                await operations.migrate("mine", "decode-0")
            with pytest.raises(Conflict, match="twice~1-0, twice~1-1"):
                await operations.migrate("twice", "decode-1")
            await operations.cordon("decode-1", on=True)
            with pytest.raises(RefusedError, match="it is cordoned"):
                await operations.migrate("mine", "decode-1")

    run(test())


def test_nothing_is_placed_on_a_cordoned_instance_until_it_is_uncordoned() -> None:
    async def test() -> None:
        fleet = Fleet()
        async with controlling(fleet) as controller:
            await seen(controller, "ready", 3)
            for name, other in (("decode-0", "decode-1"), ("decode-1", "decode-0")):
                told = await controller.operations.cordon(name, on=True)
                assert (told.state, told.cordoned, fleet[name].cordoned) == ("ready", True, True)
                assert placed(controller) == other
                await controller.operations.cordon(name, on=False)
            assert [event.kind for event in controller.events.after(0)].count("uncordoned") == 2

    run(test())


def test_a_cordon_outlives_the_controller() -> None:
    async def test() -> None:
        fleet = Fleet()
        async with controlling(fleet) as first:
            await seen(first, "ready", 3)
            await first.operations.cordon("decode-0", on=True)
        async with controlling(fleet) as second:
            await seen(second, "ready", 3)
            assert {one.name for one in second.status().instances if one.cordoned} == {"decode-0"}
            assert placed(second) == "decode-1"

    run(test())


def test_a_drain_moves_everything_away_oldest_first_and_leaves_the_instance_cordoned() -> None:
    async def test() -> None:
        fleet = Fleet()
        async with controlling(fleet) as controller:
            await seen(controller, "ready", 3)
            fleet["decode-0"].run(*(f"r{number}~1-0" for number in range(6)))
            told = await controller.operations.drain("decode-0", 0)
            assert (told.state, told.cordoned) == ("draining", True)
            assert "6 requests were moved" in (await seen(controller, "drained")).reason
            assert len(fleet["decode-1"].running) == 6
            assert fleet["decode-0"].calls[0] == "move r5~1-0 to host-of-decode-1:1"
            assert {one.cause for one in controller.mover.migrations.listed()} == {"drain"}
            (left,) = [one for one in controller.status().instances if one.name == "decode-0"]
            assert (left.state, left.cordoned) == ("ready", True)
            assert fleet.alive == ["decode-0", "decode-1", "prefill-0"]

    run(test())


def test_only_so_many_requests_leave_at_once() -> None:
    async def test() -> None:
        fleet = Fleet()
        async with controlling(fleet) as controller:
            await seen(controller, "ready", 3)
            one = fleet["decode-0"]
            one.run(*(f"r{number}~1-0" for number in range(9)))
            one.moves.clear()
            await controller.operations.drain("decode-0", 0)
            await until(lambda: len(one.calls) >= CONFIG.transfer.max_moves)
            await asyncio.sleep(5 * CONTROL.beat)
            assert len(one.calls) == CONFIG.transfer.max_moves
            one.moves.set()
            await seen(controller, "drained")

    run(test())


def test_what_cannot_move_is_left_to_finish() -> None:
    async def test() -> None:
        fleet = Fleet()
        async with controlling(fleet) as controller:
            await seen(controller, "ready", 3)
            one = fleet["decode-0"]
            one.run("stays~1-0")
            one.stubborn = True
            await controller.operations.drain("decode-0", 0)
            await until(lambda: len(one.calls) == 3)
            one.running.clear()
            one.count()
            assert "0 requests were moved" in (await seen(controller, "drained")).reason
            assert len(one.calls) == 3

    run(test())


def test_a_drain_beyond_its_deadline_says_what_is_left() -> None:
    async def test() -> None:
        fleet = Fleet()
        async with controlling(fleet, NOW) as controller:
            await seen(controller, "ready", 3)
            fleet["decode-0"].run("stays~1-0")
            fleet["decode-0"].stubborn = True
            await controller.operations.drain("decode-0", 0)
            assert "1 request is left and goes on there" in (await seen(controller, "drain_timeout")).reason

    run(test())


def test_one_drain_of_an_instance_at_a_time() -> None:
    async def test() -> None:
        fleet = Fleet()
        async with controlling(fleet) as controller:
            await seen(controller, "ready", 3)
            fleet["decode-0"].run("stays~1-0")
            fleet["decode-0"].stubborn = True
            await controller.operations.drain("decode-0", 5)
            with pytest.raises(RefusedError, match="drained already"):
                await controller.operations.drain("decode-0", 5)

    run(test())


def test_scaling_down_moves_the_requests_away() -> None:
    async def test() -> None:
        fleet = Fleet()
        async with controlling(fleet) as controller:
            await seen(controller, "ready", 3)
            fleet["decode-0"].run("a~1-0", "b~1-0")
            fleet["decode-1"].run("c~1-0")
            await asyncio.sleep(5 * CONTROL.beat)
            controller.scale("decode", 1)
            await seen(controller, "drained", subject="decode-1")
            assert sorted(fleet["decode-0"].running) == ["a~1-0", "b~1-0", "c~1-0"]
            assert [one.cause for one in controller.mover.migrations.listed()] == ["scale_down"]

    run(test())


def test_an_instance_goes_on_in_another_role_and_both_targets_follow() -> None:
    async def test() -> None:
        fleet = Fleet()
        async with controlling(fleet) as controller:
            await seen(controller, "ready", 3)
            fleet["decode-0"].run("a~1-0")
            await controller.operations.change_role("decode-0", "prefill", 0)
            assert "prefill now" in (await seen(controller, "role")).reason
            one = fleet["decode-0"]
            assert one.calls == ["move a~1-0 to host-of-decode-1:1", "drain", "become prefill"]
            await asyncio.sleep(10 * CONTROL.beat)
            assert fleet.alive == ["decode-0", "decode-1", "prefill-0"]
            status = controller.status()
            assert [(pool.name, pool.target, pool.ready) for pool in status.pools] == [
                ("prefill", 2, 2), ("decode", 1, 1)
            ]  # fmt: skip
            assert not any(one.cordoned for one in status.instances)
            assert controller.pools["prefill"].members.keys() == {"prefill-0", "decode-0"}
            one.die("killed")
            await seen(controller, "ready", subject="prefill-1")

    run(test())


def test_a_changed_role_outlives_the_controller() -> None:
    async def test() -> None:
        fleet = Fleet()
        async with controlling(fleet) as first:
            await seen(first, "ready", 3)
            await first.operations.change_role("decode-0", "prefill", 0)
            await seen(first, "role")
            await asyncio.sleep(5 * CONTROL.beat)
        async with controlling(fleet) as second:
            await seen(second, "ready", 3)
            await asyncio.sleep(5 * CONTROL.beat)
            assert fleet.alive == ["decode-0", "decode-1", "prefill-0"]
            assert second.pools["prefill"].members.keys() == {"prefill-0", "decode-0"}

    run(test())


def test_a_role_change_that_cannot_be_is_undone() -> None:
    async def test() -> None:
        fleet = Fleet()
        async with controlling(fleet, NOW) as controller:
            await seen(controller, "ready", 3)
            fleet["decode-0"].run("stays~1-0")
            fleet["decode-0"].stubborn = True
            await controller.operations.change_role("decode-0", "prefill", 0)
            assert "it stays a decode instance" in (await seen(controller, "role_failed")).reason
            await asyncio.sleep(5 * CONTROL.beat)
            assert not fleet["decode-0"].cordoned
            assert fleet["decode-0"].calls[-1] == "undrain"

    run(test())


@pytest.mark.parametrize("undone", ["by the operator", "when its time is up"])
def test_an_instance_whose_role_change_is_undone_does_not_pass_for_one_that_was_told_to_end(
    undone: str,
) -> None:
    """Both refuse what is new, and say so. Until it takes requests again nobody else may have it."""

    async def test() -> None:
        fleet = Fleet()
        async with controlling(fleet) as controller:
            await seen(controller, "ready", 3)
            one, operations = fleet["decode-0"], controller.operations
            one.turns.clear()
            one.undrains.clear()
            await operations.change_role("decode-0", "prefill", 60.0 if undone == "by the operator" else 0.05)
            taken_back = None
            if undone == "by the operator":
                await until(lambda: one.state == "draining")
                taken_back = asyncio.create_task(operations.cordon("decode-0", on=False))
            await until(lambda: one.calls[-1:] == ["undrain"])
            await asyncio.sleep(5 * CONTROL.beat)
            with pytest.raises(RefusedError, match="is being drained"):
                await operations.drain("decode-0", 5)
            one.undrains.set()
            if taken_back is not None:
                await taken_back
            await until(lambda: controller.pools["decode"].members["decode-0"].emptying is None)
            await asyncio.sleep(5 * CONTROL.beat)
            assert fleet.alive == ["decode-0", "decode-1", "prefill-0"]
            (left,) = [one for one in controller.status().instances if one.name == "decode-0"]
            assert (left.state, left.role, left.cordoned) == ("ready", "decode", False)

    run(test())


def test_a_role_change_that_the_controller_s_end_cuts_off_leaves_nothing_cordoned() -> None:
    async def test() -> None:
        fleet = Fleet()
        async with controlling(fleet) as first:
            await seen(first, "ready", 3)
            fleet["decode-0"].turns.clear()
            await first.operations.change_role("decode-0", "prefill", 60.0)
            await until(lambda: fleet["decode-0"].state == "draining")
        async with controlling(fleet) as second:
            await seen(second, "ready", 3)
            await asyncio.sleep(5 * CONTROL.beat)
            assert fleet.alive == ["decode-0", "decode-1", "prefill-0"]
            assert not any(one.cordoned for one in second.status().instances)

    run(test())


def test_a_drain_that_follows_another_at_once_is_known_as_one_that_is_under_way() -> None:
    async def test() -> None:
        fleet = Fleet()
        async with controlling(fleet) as controller:
            await seen(controller, "ready", 3)
            await controller.operations.drain("decode-0", 5)
            first = controller.pools["decode"].members["decode-0"].emptying
            assert first is not None
            first.add_done_callback(lambda _: fleet["decode-0"].run("stays~1-0"))
            fleet["decode-0"].stubborn = True
            while controller.pools["decode"].members["decode-0"].emptying is first:  # noqa: ASYNC110 (the very next moment counts)
                await asyncio.sleep(0)
            await controller.operations.drain("decode-0", 5)
            await asyncio.sleep(5 * CONTROL.beat)
            assert controller.pools["decode"].members["decode-0"].emptying is not None

    run(test())


def test_a_pool_is_not_left_empty_by_a_role_change() -> None:
    async def test() -> None:
        fleet = Fleet()
        async with controlling(fleet) as controller:
            await seen(controller, "ready", 3)
            with pytest.raises(RefusedError, match="scale it up first"):
                await controller.operations.change_role("prefill-0", "decode", 0)
            with pytest.raises(InvalidParameter, match="prefill or decode"):
                await controller.operations.change_role("prefill-0", "both", 0)

    run(test())


def test_a_cluster_that_is_about_to_end_says_so_to_its_gateways() -> None:
    async def test() -> None:
        async with controlling(Fleet()) as controller:
            await seen(controller, "ready", 3)
            assert controller.join(pb.Gateway(name="g")).ready
            controller.end()
            status = controller.join(pb.Gateway(name="g"))
            assert (status.draining, status.ready) == (True, False)

    run(test())


def test_a_crowded_instance_gives_one_request_to_a_roomy_one_and_says_why() -> None:
    async def test() -> None:
        fleet = Fleet()
        scheduler = CONFIG.scheduler.model_copy(update={"rebalance_period": 0.02})
        async with controlling(fleet, CONFIG.model_copy(update={"scheduler": scheduler})) as controller:
            await seen(controller, "ready", 3)
            full = fleet["decode-0"]
            full.status_message.blocks_used, full.status_message.blocks_free = 98, 2
            full.run("a~1-0", "b~1-0")
            await until(lambda: bool(controller.mover.migrations.listed()))
            (moved,) = controller.mover.migrations.listed()
            assert (moved.source, moved.destination, moved.cause) == ("decode-0", "decode-1", "rebalance")
            assert "blocks per request" in moved.reason
            assert len(fleet["decode-1"].running) == 1

    run(test())


def crowded(controller: Controller, fleet: Fleet) -> None:
    """decode-0 has two requests and almost no blocks, decode-1 has all of its own."""
    full = fleet["decode-0"]
    full.status_message.blocks_used, full.status_message.blocks_free = 98, 2
    full.run("a~1-0", "b~1-0")


SELDOM = CONFIG.model_copy(
    update={"scheduler": CONFIG.scheduler.model_copy(update={"rebalance_period": 60.0})}
)


def test_a_round_that_is_asked_for_moves_what_its_dry_run_named() -> None:
    async def test() -> None:
        fleet = Fleet()
        async with controlling(fleet, SELDOM) as controller:
            await seen(controller, "ready", 3)
            assert "fewer than 3 free blocks" in (await controller.operations.rebalance()).reason
            crowded(controller, fleet)
            await until(lambda: any(load.running == 2 for load in controller.scheduler.view.loads(0.0)))
            for _ in range(2):  # looking changes nothing
                (plan,) = (await controller.operations.rebalance(dry_run=True)).moves
            assert (plan.source, plan.destination, plan.outcome) == ("decode-0", "decode-1", "")
            assert "1.0 blocks per request" in plan.reason
            assert not controller.mover.migrations.listed() and not fleet["decode-1"].running
            (moved,) = (await controller.operations.rebalance()).moves
            assert (moved.request_id, moved.outcome, moved.cause) == (
                plan.request_id,
                "committed",
                "rebalance",
            )
            assert list(fleet["decode-1"].running) == [plan.request_id]

    run(test())


@pytest.mark.parametrize("headroom", [0, 20])
def test_an_instance_with_urgent_requests_keeps_headroom_clear(headroom: int) -> None:
    """30 of 100 blocks are left for 2 requests: with 20 kept clear, 5 for each."""

    async def test() -> None:
        fleet = Fleet()
        scheduler = SELDOM.scheduler.model_copy(
            update={"headroom_blocks": headroom, "crowded_below": 6.0, "roomy_above": 7.0}
        )
        async with controlling(fleet, SELDOM.model_copy(update={"scheduler": scheduler})) as controller:
            await seen(controller, "ready", 3)
            status = fleet["decode-0"].status_message
            status.blocks_used, status.blocks_free, status.urgent = 70, 30, 1
            fleet["decode-0"].run("a~1-0", "b~1-0")
            await until(lambda: any(load.urgent for load in controller.scheduler.view.loads(0.0)))
            moves = (await controller.operations.rebalance(dry_run=True)).moves
            assert [move.source for move in moves] == (["decode-0"] if headroom else [])

    run(test())


def test_a_round_says_why_a_crowded_instance_gives_nothing() -> None:
    async def test() -> None:
        fleet = Fleet()
        async with controlling(fleet, SELDOM) as controller:
            await seen(controller, "ready", 3)
            crowded(controller, fleet)
            fleet["decode-0"].run("a~1-0", "b~1-0", phase="prefill")
            await until(lambda: any(load.running == 2 for load in controller.scheduler.view.loads(0.0)))
            reply = await controller.operations.rebalance()
            assert not reply.moves and reply.reason.startswith("nothing on decode-0 may move")

    run(test())
