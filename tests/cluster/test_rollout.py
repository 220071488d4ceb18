"""Instances are replaced one after the other, each by one that is ready first; settings change live."""

from __future__ import annotations

import json

import pytest

from cluster import control_pb2 as pb
from cluster.applying import apply, declare, restart
from cluster.config import Config, EngineConfig
from cluster.controller import Controller
from cluster.memo import Memo
from cluster.settings_change import (
    AT_ONCE,
    CONTROLLER,
    INSTANCES,
    RESTART,
    differences,
    effect,
    fingerprint,
    flat,
    masked,
    with_settings,
)
from engine.errors import ConfigError, NotFound, RefusedError
from tests.cluster.made_up import CONFIG, CONTROL, Fleet, MadeUp, controlling, run, seen


def order(controller: Controller, *wanted: str) -> list[str]:
    return [f"{one.kind} {one.subject}" for one in controller.events.after(0) if one.kind in wanted]


async def settled(controller: Controller, fleet: Fleet, count: int) -> None:
    """Until nothing is outdated and the pools are whole again."""
    await seen(controller, "replaced", count)
    while len(fleet.alive) != sum(pool.target for pool in controller.pools.values()):
        member = next(member for pool in controller.pools.values() for member in pool.members.values())
        member.polled.clear()
        await member.polled.wait()


def test_each_is_replaced_by_one_that_is_ready_before_it_drains() -> None:
    async def test() -> None:
        fleet = Fleet()
        async with controlling(fleet) as controller:
            await seen(controller, "ready", 3)
            most = 0

            def count(one: MadeUp) -> None:
                nonlocal most
                most = max(most, len([n for n in fleet.alive if n.startswith("decode")]) + 1)

            fleet.prepare = count
            assert restart(controller, "decode").instances == ["decode-0", "decode-1"]
            await settled(controller, fleet, 2)
            assert fleet.alive == ["decode-2", "decode-3", "prefill-0"]
            assert most == 3
            assert order(controller, "ready", "draining", "replaced")[3:] == [
                "ready decode-2", "draining decode-0", "replaced decode-0",
                "ready decode-3", "draining decode-1", "replaced decode-1",
            ]  # fmt: skip

    run(test())


def test_requests_move_away_before_the_old_one_ends() -> None:
    async def test() -> None:
        fleet = Fleet()
        async with controlling(fleet) as controller:
            await seen(controller, "ready", 3)
            fleet["decode-0"].run("a", "b")
            restart(controller, "decode-0")
            await settled(controller, fleet, 1)
            running = [id for name in fleet.alive for id in fleet[name].running]
            assert sorted(running) == ["a", "b"]
            moves = controller.migrations.listed("")
            assert {(one.cause, one.outcome) for one in moves} == {("restart", "committed")}

    run(test())


def test_without_room_for_a_spare_the_old_one_goes_first() -> None:
    async def test() -> None:
        fleet = Fleet()
        config = CONFIG.model_copy(update={"control": CONTROL.model_copy(update={"surge": 0})})
        async with controlling(fleet, config) as controller:
            await seen(controller, "ready", 3)
            restart(controller, "prefill-0")
            await settled(controller, fleet, 1)
            assert order(controller, "draining", "spawned")[-2:] == [
                "draining prefill-0",
                "spawned prefill-1",
            ]

    run(test())


def test_a_spare_that_does_not_start_does_not_stop_it() -> None:
    async def test() -> None:
        fleet = Fleet()
        control = CONTROL.model_copy(update={"start_timeout": 0.5})
        async with controlling(fleet, CONFIG.model_copy(update={"control": control})) as controller:
            await seen(controller, "ready", 3)

            def no_room(one: MadeUp) -> None:
                # As on a machine whose only GPU is taken: it can start when the old one has gone.
                if "decode-0" in fleet.alive:
                    one.loaded.clear()

            fleet.prepare = no_room
            restart(controller, "decode-0")
            await seen(controller, "no_spare")
            await settled(controller, fleet, 1)
            assert "decode-0" not in fleet.alive

    run(test())


def test_instances_of_an_older_version_are_replaced_by_those_of_the_new_one() -> None:
    async def test() -> None:
        fleet = Fleet()
        async with controlling(fleet) as first:
            await seen(first, "ready", 3)
        fleet.version = "test-2"
        async with controlling(fleet) as second:
            status = second.status()
            await settled(second, fleet, 3)
            assert status.version == "test-2"
            assert {fleet[name].version for name in fleet.alive} == {"test-2"}
            assert "it runs version test, test-2 is current" in (await seen(second, "replacing")).reason

    run(test())


def test_a_node_that_has_an_old_version_only_is_not_replaced_for_ever() -> None:
    async def test() -> None:
        fleet = Fleet()
        async with controlling(fleet) as first:
            await seen(first, "ready", 3)
        fleet.version = "test-2"
        async with controlling(fleet) as second:
            fleet.version = "test"
            stopped = await seen(second, "rollout_stopped")
            assert "it runs version test" in stopped.reason
            assert not any(one.outdated for one in second.status().instances)

    run(test())


def test_a_restart_goes_on_when_the_controller_begins_anew() -> None:
    async def test() -> None:
        fleet = Fleet()
        async with controlling(fleet) as first:
            await seen(first, "ready", 3)
            restart(first, "all")
            for member in first.pools["decode"].members.values():
                member.polled.clear()
                await member.polled.wait()
        async with controlling(fleet) as second:
            await seen(second, "replaced", 2)
            assert not {"decode-0", "prefill-0"} & set(fleet.alive)

    run(test())


def test_what_is_not_there_cannot_be_restarted() -> None:
    async def test() -> None:
        async with controlling(Fleet()) as controller:
            await seen(controller, "ready", 3)
            with pytest.raises(NotFound, match=r"decode-7.*: there are prefill, decode, "):
                restart(controller, "decode-7")
            assert restart(controller, "all", dry_run=True).instances == ["prefill-0", "decode-0", "decode-1"]
            assert not controller.rollout.marked

    run(test())


def test_of_an_empty_pool_nothing_is_replaced() -> None:
    async def test() -> None:
        empty = {"pools.prefill.replicas": 0, "pools.prefill.min_replicas": 0}
        async with controlling(Fleet(), with_settings(CONFIG, empty)) as controller:
            await seen(controller, "ready", 2)
            assert not restart(controller, "prefill").instances

    run(test())


def test_a_controller_that_nobody_would_start_again_stays() -> None:
    async def test() -> None:
        async with controlling(Fleet()) as controller:
            with pytest.raises(RefusedError, match="nobody would start"):
                restart(controller, "controller")
            left: list[bool] = []
            controller.leave = lambda: left.append(True)
            restart(controller, "controller", dry_run=True)
            assert not left
            restart(controller, "controller")
            assert left

    run(test())


def test_sizes_are_applied_at_once() -> None:
    async def test() -> None:
        fleet = Fleet()
        async with controlling(fleet) as controller:
            await seen(controller, "ready", 3)
            (change,) = (await apply(controller, {"pools.decode.replicas": 3})).changes
            assert (change.before, change.after, change.effect) == ("2", "3", AT_ONCE)
            await seen(controller, "ready", subject="decode-2")
            assert not (await apply(controller, {"pools.decode.replicas": 3})).changes

    run(test())


def test_bounds_change_without_an_instance_being_touched() -> None:
    async def test() -> None:
        fleet = Fleet()
        async with controlling(fleet) as controller:
            await seen(controller, "ready", 3)
            with pytest.raises(RefusedError):
                controller.scale("decode", 65)
            (change,) = (await apply(controller, {"pools.decode.max_replicas": 70})).changes
            assert change.effect == AT_ONCE
            controller.scale("decode", 65, dry_run=True)
            assert fleet.alive == ["decode-0", "decode-1", "prefill-0"]
            assert len(fleet.made) == 3

    run(test())


def test_what_operators_changed_by_hand_is_what_a_file_is_compared_with() -> None:
    async def test() -> None:
        fleet = Fleet()
        async with controlling(fleet) as controller:
            await seen(controller, "ready", 3)
            controller.scale("decode", 70, most=80, dry_run=True)
            controller.scale("decode", None, least=2, most=80)
            (change,) = (await apply(controller, {"pools.decode.max_replicas": 64}, dry_run=True)).changes
            assert (change.before, change.after) == ("80", "64")
            await apply(controller, {"pools.decode.max_replicas": 64})
            assert not (await apply(controller, {"pools.decode.max_replicas": 64})).changes
            with pytest.raises(ConfigError, match="not within"):
                await apply(controller, {"pools.decode.max_replicas": 1})

    run(test())


def test_a_file_that_has_autoscaling_on_leaves_the_size_to_it() -> None:
    async def test() -> None:
        fleet = Fleet()
        async with controlling(fleet) as controller:
            await seen(controller, "ready", 3)
            wanted = {"pools.decode.autoscale.enabled": True, "pools.decode.replicas": 5}
            (change,) = (await apply(controller, wanted)).changes
            assert change.path == "pools.decode.autoscale.enabled"
            assert controller.status().pools[1].autoscale
            assert controller.pools["decode"].target == 2
            assert not (await apply(controller, wanted)).changes
            await apply(controller, {"pools.decode.autoscale.enabled": False})
            assert not controller.status().pools[1].autoscale

    run(test())


def test_settings_of_engines_replace_every_instance_and_targets_stay() -> None:
    async def test() -> None:
        fleet = Fleet()
        async with controlling(fleet) as controller:
            await seen(controller, "ready", 3)
            controller.scale("decode", 3)
            await seen(controller, "ready", 4)
            await apply(controller, {"engine.token_budget": 64})
            await settled(controller, fleet, 4)
            wanted = fingerprint(CONFIG.model_copy(update={"engine": EngineConfig(token_budget=64)}))
            assert {fleet[name].settings for name in fleet.alive} == {wanted}
            assert controller.pools["decode"].target == 3

    run(test())


def test_what_takes_a_restart_is_named_and_left() -> None:
    async def test() -> None:
        fleet = Fleet()
        async with controlling(fleet) as controller:
            await seen(controller, "ready", 3)
            changes = (await apply(controller, {"gateway.port": 9000, "pools.prefill.replicas": 2})).changes
            assert [(one.path, one.effect) for one in changes] == [
                ("pools.prefill.replicas", AT_ONCE), ("gateway.port", RESTART),
            ]  # fmt: skip
            assert controller.config.gateway.port == CONFIG.gateway.port
            assert (await seen(controller, "not_applied")).subject == "gateway.port"

    run(test())


def test_applied_settings_outlive_the_controller_until_another_config_is_deployed() -> None:
    async def test() -> None:
        fleet = Fleet()
        async with controlling(fleet) as first:
            await seen(first, "ready", 3)
            (change,) = (await apply(first, {"scheduler.rest": "7s"})).changes
            assert change.effect == CONTROLLER
            await seen(first, "ready", 6)
            for member in first.pools["decode"].members.values():
                member.polled.clear()
                await member.polled.wait()
        async with controlling(fleet) as second:
            assert second.config.scheduler.rest == 7
        log = CONFIG.log.model_copy(update={"level": "debug"})
        async with controlling(fleet, CONFIG.model_copy(update={"log": log})) as third:
            assert third.config.scheduler.rest == CONFIG.scheduler.rest

    run(test())


def test_a_wrong_setting_changes_nothing() -> None:
    async def test() -> None:
        async with controlling(Fleet()) as controller:
            with pytest.raises(ConfigError, match=r"engine\.token_budge"):
                await apply(controller, {"engine.token_budge": 1, "pools.decode.replicas": 3})
            with pytest.raises(ConfigError, match=r"pools\.decode\.replicas: expected integer"):
                await apply(controller, {"pools.decode.replicas": "two"})
            assert controller.pools["decode"].target == 2

    run(test())


def test_what_serve_declares_is_applied_once_so_that_operators_have_the_last_word() -> None:
    async def test() -> None:
        fleet = Fleet()
        async with controlling(fleet) as first:
            await seen(first, "ready", 3)
            await declare(first, flat({"pools": {"decode": {"replicas": 3}}}))
            assert first.pools["decode"].target == 3
            first.scale("decode", 4)
            await seen(first, "ready", 5)
            for member in first.pools["decode"].members.values():
                member.polled.clear()
                await member.polled.wait()
        async with controlling(fleet) as second:
            await declare(second, {"pools.decode.replicas": 3})
            assert second.pools["decode"].target == 4
            await declare(second, {"pools.decode.replicas": 1})
            assert second.pools["decode"].target == 1

    run(test())


def test_serve_cannot_declare_what_takes_a_restart() -> None:
    async def test() -> None:
        async with controlling(Fleet()) as controller:
            with pytest.raises(ConfigError, match=r"gateway\.port takes a restart"):
                await declare(controller, {"gateway.port": 1})

    run(test())


def test_every_setting_has_an_effect_and_a_reason() -> None:
    effects = {path: effect(path) for path in flat(Config().model_dump(mode="json"))}
    assert all(kind in (AT_ONCE, CONTROLLER, INSTANCES, RESTART) and why for kind, why in effects.values())
    assert effects["pools.decode.replicas"][0] == AT_ONCE
    assert effects["engine.kv_memory"][0] == INSTANCES
    assert effects["gateway.api_keys"][0] == RESTART


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("engine.threads", 3),
        ("pools.decode.resources", {"a": 1}),
        ("model.weights", "dense"),
        ("model.activations", "int8"),
    ],
)
def test_the_fingerprint_tells_what_instances_are_built_with(path: str, value: object) -> None:
    other = with_settings(CONFIG, {path: value})
    assert [change.path for change in differences(CONFIG, other)] == [path]
    assert fingerprint(other) != fingerprint(CONFIG)


@pytest.mark.parametrize("path", ["pools.decode.replicas", "gateway.retries", "scheduler.crowded_below"])
def test_the_fingerprint_leaves_out_what_they_do_not_see(path: str) -> None:
    assert fingerprint(with_settings(CONFIG, {path: 5})) == fingerprint(CONFIG)


def test_secrets_are_masked() -> None:
    config = with_settings(CONFIG, {"gateway.api_keys": ["k"]})
    assert masked(config)["control"]["token"] == masked(config)["gateway"]["api_keys"] == "…"
    (change,) = differences(CONFIG, config)
    assert "k" not in (change.before + change.after)


def test_a_memo_of_a_later_version_is_understood_as_far_as_known() -> None:
    memo = Memo(generation=3, targets={"decode": 2}, marked=("decode-0",))
    assert Memo.from_bytes(memo.to_bytes()) == memo
    later = json.loads(memo.to_bytes()) | {"colour": "blue"}
    assert Memo.from_bytes(json.dumps(later).encode()) == memo
    with pytest.raises(ValueError, match="not a memo"):
        Memo.from_bytes(b"[1]")


def test_a_reply_is_one_change_a_setting() -> None:
    other = with_settings(CONFIG, {"transfer.lease": "7s"})
    assert differences(CONFIG, other) == [
        pb.Change(
            path="transfer.lease", before='"30s"', after='"7s"', effect=INSTANCES,
            reason="both ends of every movement are built with it",
        )
    ]  # fmt: skip
