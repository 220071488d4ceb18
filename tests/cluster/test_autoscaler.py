"""Autoscaling in the controller: pools follow their load, explicit wishes win, and every change says why."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import pytest

from cluster import control_pb2 as pb
from cluster.config import Config, DecodePool, ObserveConfig, PoolsConfig, PrefillPool
from cluster.config_scheduler import AutoscaleConfig
from cluster.controller import Controller
from engine.errors import NotFound, RefusedError
from global_scheduler.attainment import SLICES
from tests.cluster.made_up import CONTROL, Fleet, MadeUp, controlling, run, seen

QUICK = AutoscaleConfig(
    enabled=True, period=0.02, out_patience=0.0, in_patience=0.0, cool_down=0.05, warm_up=0.0, step=4
)


def config(prefill: int = 1, decode: int = 2, *, most: int = 5, **more: object) -> Config:
    scale = QUICK.model_copy(update=more)
    pools = PoolsConfig(
        prefill=PrefillPool(replicas=prefill, max_replicas=most, autoscale=scale),
        decode=DecodePool(replicas=decode, max_replicas=most, autoscale=scale),
    )
    return Config(control=CONTROL, pools=pools, observe=ObserveConfig(window=0.06))


def load(fleet: Fleet, role: str, *, used: int, running: int) -> None:
    """All instances that are started in a role tell of this load."""

    def tell(one: MadeUp) -> None:
        if one.role == role:
            one.status_message.blocks_used, one.status_message.running = used, running

    fleet.prepare = tell


async def until(controller: Controller, pool: str, target: int) -> pb.Pool:
    async with asyncio.timeout(10):
        while True:
            found = next(one for one in controller.status().pools if one.name == pool)
            if found.target == found.ready == target and not found.draining:
                return found
            await asyncio.sleep(0.01)


def resizes(controller: Controller, pool: str) -> list[str]:
    return [one.outcome for one in controller.explain(pool).explanations if one.kind == "resize"]


def test_a_crowded_pool_grows_and_says_why() -> None:
    async def test() -> None:
        fleet = Fleet()
        load(fleet, "decode", used=90, running=5)
        async with controlling(fleet, config(role_change=False)) as controller:
            await until(controller, "decode", 5)
            await asyncio.sleep(0.1)
            explained = controller.explain("decode").explanations
            change = next(one for one in explained if one.kind == "resize")
            assert change.outcome == "from 2 to 3 instances"
            assert "2.0 blocks per request, 10 are wanted" in change.reason
            scaled = await seen(controller, "scaled", subject="decode")
            assert change.reason in scaled.reason
            assert explained[-1].kind == "opinion" and "5 instances are the most" in explained[-1].reason

    run(test())


def test_an_idle_pool_shrinks_to_its_least_and_not_below() -> None:
    async def test() -> None:
        fleet = Fleet()
        async with controlling(fleet, config(decode=4, role_change=False)) as controller:
            await until(controller, "decode", 1)
            assert resizes(controller, "decode") == [f"from {n} to {n - 1} instances" for n in (4, 3, 2)]
            await asyncio.sleep(0.2)
            assert controller.pools["decode"].target == 1

    run(test())


def test_an_instance_changes_its_role_before_another_is_started() -> None:
    async def test() -> None:
        fleet = Fleet()
        load(fleet, "decode", used=90, running=5)
        async with controlling(fleet, config(prefill=2, decode=2, in_above=50.0)) as controller:
            await seen(controller, "role")
            await until(controller, "decode", 3)
            assert len(fleet.made) == 4 and controller.pools["prefill"].target == 1
            (change,) = [
                one for one in controller.explain("decode").explanations if "from prefill" in one.outcome
            ]
            assert "prefill gives up an instance" in change.reason

    run(test())


def test_bounds_that_an_operator_moved_are_those_of_a_change_of_role_too() -> None:
    """Decode has as many as the config allows, and more by a later wish: prefill's instance may come."""

    async def test() -> None:
        fleet = Fleet()
        load(fleet, "decode", used=90, running=5)
        settings = config(prefill=2, decode=3, most=3, in_above=50.0, in_patience=0.3, out_patience=0.3)
        async with controlling(fleet, settings) as controller:
            controller.scale("decode", automatic=True, most=4)
            await seen(controller, "role")
            await until(controller, "decode", 4)
            assert len(fleet.made) == 5 and controller.pools["prefill"].target == 1

    run(test())


def test_a_change_of_role_that_is_refused_becomes_a_new_instance() -> None:
    async def test() -> None:
        fleet = Fleet()
        load(fleet, "decode", used=90, running=5)
        settings = config(prefill=2, decode=2, most=3, in_above=50.0)
        async with controlling(fleet, settings) as controller:

            async def refuse(name: str, role: str, deadline: float) -> None:
                raise RefusedError(f"{name} is asked for by a test", param="instance")

            controller.scaler._change_role = refuse
            await until(controller, "decode", 3)
            assert not [one for one in controller.events.after(0) if one.kind in ("role_failed", "autoscale")]
            reason = resizes_reason(controller)
            assert "prefill-0 does not change its role: prefill-0 is asked for by a test" in reason
            assert "gives up an instance" not in reason
            assert len([name for name in fleet.made if name.startswith("decode")]) == 3

    run(test())


def test_while_an_instance_changes_its_role_no_other_is_started() -> None:
    """Its requests take their time to leave."""

    async def test() -> None:
        fleet = Fleet()
        load(fleet, "decode", used=90, running=5)
        settings = config(prefill=2, decode=2, in_above=50.0)
        async with controlling(fleet, settings) as controller:
            await seen(controller, "ready", 4)
            for name in ("prefill-0", "prefill-1"):
                fleet[name].moves.clear()
                fleet[name].running["r"] = "decode"
            await seen(controller, "autoscale", subject="decode")
            await thought(controller, "decode", "1 instances are starting")
            assert len(fleet.made) == 4 and controller.pools["decode"].target == 2

    run(test())


async def thought(controller: Controller, pool: str, text: str) -> None:
    async with asyncio.timeout(10):
        while True:
            if text in next(one.opinion for one in controller.status().pools if one.name == pool):
                return
            await asyncio.sleep(0.01)


def test_an_explicit_size_ends_autoscaling_until_it_is_given_back() -> None:
    async def test() -> None:
        fleet = Fleet()
        async with controlling(fleet, config(decode=2, role_change=False)) as controller:
            reply = controller.scale("decode", 3)
            assert reply.autoscale_ended and not reply.autoscale
            assert not controller.scale("decode", 4).autoscale_ended
            await until(controller, "decode", 4)
            await asyncio.sleep(0.2)
            pool = await until(controller, "decode", 4)
            assert not pool.autoscale and pool.wish == 3, "it still says what it would do"
            opinion = controller.explain("decode").explanations[-1]
            assert opinion.kind == "opinion" and "autoscaling is off" in opinion.reason
            assert controller.scale("decode", automatic=True).autoscale
            await until(controller, "decode", 1)
            kinds = [event.kind for event in controller.events.after(0) if event.subject == "decode"]
            assert kinds.count("autoscale") == 2

    run(test())


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"replicas": 6}, "1 to 5 instances, not 6"),
        ({"replicas": 0}, "has 1 at least: --min 0 as well"),
        ({"least": 4, "most": 3}, "4 instances at least and 3 at most"),
        ({"replicas": 2, "least": 3}, "3 to 5 instances, not 2: change the bounds"),
    ],
)
def test_what_is_out_of_bounds_is_refused_and_nothing_changes(asked: dict[str, int], message: str) -> None:
    async def test() -> None:
        async with controlling(Fleet(), config()) as controller:
            before = controller.scale("decode", dry_run=True)
            with pytest.raises(RefusedError, match=message):
                controller.scale("decode", **asked)  # type: ignore[arg-type]
            assert controller.scale("decode", dry_run=True) == before

    run(test())


def test_pools_of_none_keep_the_model_listed_and_wake_when_a_request_asks() -> None:
    def ask(controller: Controller) -> str:
        return controller.place(
            pb.PlaceRequest(request_id="r", prompt_tokens=4, max_tokens=4, n=1)
        ).error.code

    async def test() -> None:
        async with controlling(Fleet(), config(in_patience=60.0)) as controller:
            await seen(controller, "ready", 3)
            for name in ("prefill", "decode"):
                controller.scale(name, 0, least=0)
                await until(controller, name, 0)
            assert controller.status().ready, "gateways stay, and tell of the model"
            assert ask(controller) == "no_prefill_instance"
            await asyncio.sleep(0.2)
            assert controller.pools["decode"].target == 0, "a size that was asked for by hand stays"
            controller.scale("decode", automatic=True)
            await until(controller, "decode", 1)
            assert "requests find no instance" in resizes_reason(controller, last=True)
            assert controller.pools["prefill"].target == 0

    run(test())


def test_one_request_wakes_a_pool_of_none_whatever_patience_it_has() -> None:
    async def test() -> None:
        async with controlling(Fleet(), config(in_patience=60.0, out_patience=60.0)) as controller:
            await seen(controller, "ready", 3)
            for name in ("prefill", "decode"):
                controller.scale(name, 0, least=0)
                await until(controller, name, 0)
            controller.scale("decode", automatic=True)
            assert controller.place(pb.PlaceRequest(request_id="r", prompt_tokens=4, max_tokens=4)).error.code
            await until(controller, "decode", 1)

    run(test())


def test_a_request_is_remembered_until_pools_are_looked_at() -> None:
    """However rarely that is."""

    async def test() -> None:
        async with controlling(Fleet(), config(period=120.0, out_patience=60.0)) as controller:
            await seen(controller, "ready", 3)
            controller.scale("decode", 0, least=0)
            controller.scale("decode", automatic=True)
            now = time.monotonic()
            controller.scaler.in_vain(now)
            await controller.scaler.step(now + 119.0)
            assert controller.pools["decode"].target == 1

    run(test())


def test_a_pool_of_none_that_nobody_asks_for_stays_one() -> None:
    async def test() -> None:
        async with controlling(Fleet(), config(in_patience=60.0)) as controller:
            await seen(controller, "ready", 3)
            controller.scale("decode", 0, least=0)
            controller.scale("decode", automatic=True)
            await thought(controller, "decode", "none is missed")
            assert (await until(controller, "decode", 0)).autoscale

    run(test())


def test_bounds_can_be_moved_and_hold_for_the_next_controller_too() -> None:
    async def test() -> None:
        fleet = Fleet()
        async with controlling(fleet, config(in_patience=60.0)) as controller:
            await seen(controller, "ready", 3)
            assert controller.scale("decode", 9, most=9).most == 9
            await until(controller, "decode", 9)
            await asyncio.sleep(0.05)
        async with controlling(fleet, config(in_patience=60.0)) as controller:
            await until(controller, "decode", 9)
            again = controller.scale("decode", dry_run=True)
            assert (again.least, again.most, again.target, again.autoscale) == (1, 9, 9, False)

    run(test())


@pytest.mark.parametrize(
    "asked",
    [{"replicas": 4}, {"replicas": 2}, {"automatic": True}],
    ids=["a size", "the same", "autoscaling"],
)
def test_a_size_that_was_asked_for_is_told_from_one_of_the_settings(asked: dict[str, Any]) -> None:
    async def test() -> None:
        async with controlling(Fleet(), config(enabled="automatic" not in asked)) as controller:
            assert not decode(controller).sized
            controller.scale("decode", most=9)
            controller.scale("decode", **asked, dry_run=True)
            assert not decode(controller).sized
            controller.scale("decode", **asked)
            assert decode(controller).sized
            assert not next(one for one in controller.status().pools if one.name == "prefill").sized

    run(test())


def test_a_size_that_autoscaling_set_is_not_one_that_was_asked_for() -> None:
    async def test() -> None:
        fleet = Fleet()
        load(fleet, "decode", used=90, running=5)
        async with controlling(fleet, config(role_change=False)) as controller:
            assert not (await until(controller, "decode", 5)).sized

    run(test())


def test_that_a_size_was_asked_for_is_known_to_the_next_controller_and_not_to_another_cluster_s() -> None:
    async def test() -> None:
        fleet = Fleet()
        async with controlling(fleet, config(in_patience=60.0)) as controller:
            controller.scale("decode", 4)
            await until(controller, "decode", 4)
            await asyncio.sleep(0.05)
        async with controlling(fleet, config(in_patience=60.0)) as controller:
            assert (decode(controller).target, decode(controller).sized) == (4, True)
        async with controlling(Fleet(), config(in_patience=60.0)) as controller:
            assert (decode(controller).target, decode(controller).sized) == (2, False)

    run(test())


def decode(controller: Controller) -> pb.Pool:
    return next(one for one in controller.status().pools if one.name == "decode")


def test_the_prefill_pool_may_be_emptied_where_that_is_asked_for_twice() -> None:
    async def test() -> None:
        async with controlling(Fleet(), config()) as controller:
            with pytest.raises(RefusedError, match="1 at least: --min 0 as well"):
                controller.scale("prefill", 0)
            assert controller.scale("prefill", 0, least=0).target == 0
            controller.scale("decode", 3)
            with pytest.raises(RefusedError, match="sized to 3: scale it first, or give --replicas as well"):
                controller.scale("decode", most=2)
            assert controller.scale("decode", 2, most=2).target == 2

    run(test())


def test_a_missed_objective_of_its_own_phase_makes_a_pool_grow() -> None:
    async def test() -> None:
        fleet = Fleet()
        async with controlling(fleet, config(in_patience=60.0, role_change=False)) as controller:
            await seen(controller, "ready", 3)
            controller.join(pb.Gateway(name="g", lately=lately(10, tpot=4)))
            await asyncio.sleep(0.1)
            assert controller.pools["decode"].target == 2, "ten say nothing yet"
            controller.join(pb.Gateway(name="g", lately=lately(100, tpot=40)))
            pool = await until(controller, "decode", 5)
            assert "40.0% of requests met" in resizes_reason(controller) and pool.autoscale
            assert controller.pools["prefill"].target == 1

    run(test())


def lately(requests: int, tpot: int, *, slice: int = 0) -> pb.Lately:
    """All in time for their first token, `tpot` of them for the others; `slice` is when they began."""

    def at(count: int) -> list[int]:
        return [count if number == slice else 0 for number in range(SLICES)]

    return pb.Lately(requests=requests, began=at(requests), ttft_met=at(requests), tpot_met=at(tpot))


def resizes_reason(controller: Controller, *, last: bool = False) -> str:
    found = [one.reason for one in controller.explain("decode").explanations if one.kind == "resize"]
    return found[-1 if last else 0]


def test_a_placement_and_a_refusal_can_be_explained() -> None:
    async def test() -> None:
        async with controlling(Fleet(), config(in_patience=60.0)) as controller:
            await seen(controller, "ready", 3)
            ask = pb.PlaceRequest(request_id="chat~1-0", prompt_tokens=100, max_tokens=10)
            placed = controller.place(ask)
            (told,) = controller.explain("chat~1-0").explanations
            assert (told.kind, told.reason) == ("placement", placed.reason)
            assert controller.explain("chat").explanations[0] == told, "also by the client's name"
            assert controller.place(pb.PlaceRequest(request_id="big", prompt_tokens=10**6)).error.code
            assert controller.explain("big").explanations[0].kind == "refusal"
            ready = await seen(controller, "ready")
            assert [one.outcome for one in controller.explain(str(ready.id)).explanations][-1] == "ready"
            with pytest.raises(NotFound, match="nothing is remembered"):
                controller.explain("nobody")
            with pytest.raises(NotFound, match="event 999"):
                controller.explain("999")

    run(test())
