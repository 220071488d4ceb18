"""The controller with made-up instances: pools follow their targets, whatever happens to instances."""

from __future__ import annotations

import pytest

from cluster import control_pb2 as pb
from cluster import gateways
from cluster.config import EngineConfig, ModelConfig
from cluster.controller import Controller
from cluster.member import State
from engine.errors import NotFound, Overloaded, RefusedError, TandemError
from tests.cluster.doubles import until
from tests.cluster.made_up import CONFIG, CONTROL, Fleet, MadeUp, controlling, run, seen


def kinds(controller: Controller, subject: str) -> list[str]:
    return [event.kind for event in controller.events.after(0) if event.subject == subject]


def test_it_starts_as_many_instances_as_the_config_says() -> None:
    async def test() -> None:
        fleet = Fleet()
        async with controlling(fleet) as controller:
            await seen(controller, "ready", 3)
            assert fleet.alive == ["decode-0", "decode-1", "prefill-0"]
            status = controller.status()
            assert status.ready
            pools = [(pool.name, pool.target, pool.ready) for pool in status.pools]
            assert pools == [("prefill", 1, 1), ("decode", 2, 2)]
            assert kinds(controller, "decode-1") == ["spawned", "ready"]

    run(test())


def test_it_is_not_ready_before_both_pools_have_an_instance() -> None:
    async def test() -> None:
        fleet = Fleet()
        fleet.prepare = lambda one: one.loaded.clear() if one.name.startswith("decode") else None
        async with controlling(fleet) as controller:
            await seen(controller, "ready")
            assert not controller.status().ready
            fleet["decode-0"].loaded.set()
            await seen(controller, "ready", 2)
            assert controller.status().ready

    run(test())


def test_it_is_not_ready_before_it_has_looked_for_what_there_is() -> None:
    status = Controller(CONFIG, Fleet(), version="1").status()
    assert not status.pools and not status.ready


def test_a_dead_instance_is_replaced_and_the_event_says_why_it_died() -> None:
    async def test() -> None:
        fleet = Fleet()
        async with controlling(fleet) as controller:
            await seen(controller, "ready", 3)
            fleet["decode-0"].die("killed by signal 9")
            assert (await seen(controller, "died")).reason == "killed by signal 9"
            await seen(controller, "ready", subject="decode-2")
            assert fleet.alive == ["decode-1", "decode-2", "prefill-0"]
            assert "decode-0" not in controller.scheduler.view

    run(test())


@pytest.mark.parametrize("how", ["stopped", "out of reach"])
def test_an_instance_without_beats_is_killed_and_replaced(how: str) -> None:
    async def test() -> None:
        fleet = Fleet()
        config = CONFIG.model_copy(update={"control": CONTROL.model_copy(update={"silence_timeout": 0.05})})
        async with controlling(fleet, config) as controller:
            await seen(controller, "ready", 3)
            if how == "stopped":
                fleet["decode-0"].stopped = True
            else:
                fleet["decode-0"].error = Overloaded("no answer")
            assert "no beat for" in (await seen(controller, "hung")).reason
            await seen(controller, "ready", subject="decode-2")
            assert fleet.alive == ["decode-1", "decode-2", "prefill-0"]

    run(test())


def test_an_instance_whose_step_takes_too_long_is_killed_although_its_beats_come() -> None:
    async def test() -> None:
        fleet = Fleet()
        async with controlling(fleet) as controller:
            await seen(controller, "ready", 3)
            fleet["decode-0"].present = pb.Beat(step=7, tokens=12, elapsed=3.5, limit=3.0)
            reason = (await seen(controller, "hung", subject="decode-0")).reason
            assert reason == "killed: step 7 of 12 tokens takes 3.5 s, more than the 3.0 s that it may"
            await seen(controller, "ready", subject="decode-2")

    run(test())


def test_a_start_that_fails_is_tried_again_after_a_pause_with_its_reason_recorded() -> None:
    async def test() -> None:
        fleet = Fleet()
        broken = True

        def prepare(one: MadeUp) -> None:
            one.error = TandemError("model.gguf is broken") if broken and one.name.startswith("p") else None

        fleet.prepare = prepare
        async with controlling(fleet) as controller:
            event = await seen(controller, "start_failed", 3)
            assert "model.gguf is broken" in event.reason
            assert "next try" in event.reason
            broken = False
            await seen(controller, "ready", subject="prefill")
            assert fleet.alive[-1].startswith("prefill")

    run(test())


def test_scaling_up_starts_and_scaling_down_drains_the_idlest() -> None:
    async def test() -> None:
        fleet = Fleet()
        async with controlling(fleet) as controller:
            await seen(controller, "ready", 3)
            assert controller.scale("decode", 3) == pb.ScaleReply(previous=2, target=3, least=1, most=64)
            await seen(controller, "ready", 4)
            for name in ("decode-0", "decode-2"):
                fleet[name].status_message.running = 3
            polled = controller.pools["decode"].members["decode-2"].polled
            polled.clear()
            await polled.wait()
            controller.scale("decode", 2)
            await seen(controller, "drained", subject="decode-1")
            await fleet["decode-1"].dead.wait()
            assert fleet["decode-1"].calls == ["drain", "stop"]
            assert fleet.alive == ["decode-0", "decode-2", "prefill-0"]

    run(test())


def test_a_draining_instance_gets_no_requests_and_is_stopped_when_its_own_are_done() -> None:
    async def test() -> None:
        fleet = Fleet()
        async with controlling(fleet) as controller:
            await seen(controller, "ready", 3)
            for name in ("decode-0", "decode-1"):
                fleet[name].status_message.running = 1
            for member in controller.pools["decode"].members.values():
                member.polled.clear()
                await member.polled.wait()
            controller.scale("decode", 1)
            victim = (await seen(controller, "draining")).subject
            answer = controller.place(pb.PlaceRequest(request_id="r", prompt_tokens=9, max_tokens=9))
            assert answer.decode != victim
            assert not fleet[victim].dead.is_set()
            fleet[victim].status_message.running = 0
            assert "nothing was left" in (await seen(controller, "drained")).reason

    run(test())


def test_a_drain_that_takes_too_long_says_how_many_requests_go_on_elsewhere() -> None:
    async def test() -> None:
        fleet = Fleet()
        config = CONFIG.model_copy(update={"control": CONTROL.model_copy(update={"drain_timeout": 0.1})})
        async with controlling(fleet, config) as controller:
            await seen(controller, "ready", 3)
            for name in ("decode-0", "decode-1"):
                fleet[name].status_message.running = 2
            controller.scale("decode", 1)
            assert "2 requests go on elsewhere" in (await seen(controller, "drained")).reason
            assert "died" not in {event.kind for event in controller.events.after(0)}

    run(test())


def test_an_instance_that_was_told_to_end_is_drained_and_replaced() -> None:
    async def test() -> None:
        fleet = Fleet()
        async with controlling(fleet) as controller:
            await seen(controller, "ready", 3)
            fleet["decode-0"].state = "draining"
            await seen(controller, "draining", subject="decode-0")
            await seen(controller, "ready", subject="decode-2")

    run(test())


def test_scaling_down_before_an_instance_is_ready_kills_it() -> None:
    async def test() -> None:
        fleet = Fleet()
        fleet.prepare = lambda one: one.loaded.clear() if one.name == "decode-1" else None
        async with controlling(fleet) as controller:
            await seen(controller, "ready", 2)
            controller.scale("decode", 1)
            await fleet["decode-1"].dead.wait()
            assert controller.pools["decode"].count(State.READY) == 1

    run(test())


def refused(pool: str, replicas: int) -> TandemError:
    raised: list[TandemError] = []

    async def test() -> None:
        async with controlling(Fleet()) as controller:
            with pytest.raises(TandemError) as caught:
                controller.scale(pool, replicas)
            raised.append(caught.value)

    run(test())
    return raised[0]


def test_scaling_to_nothing_is_refused_with_what_to_do() -> None:
    error = refused("decode", 0)
    assert isinstance(error, RefusedError)
    assert "--min 0 as well" in error.message
    assert "requests are refused then" in error.message


def test_an_unknown_pool_is_answered_with_the_nearest_name() -> None:
    error = refused("decod", 2)
    assert isinstance(error, NotFound)
    assert "did you mean decode?" in error.message


def test_a_pool_larger_than_any_is_refused() -> None:
    assert "max_replicas" in refused("decode", 100_000).message


def test_a_dry_run_changes_nothing() -> None:
    async def test() -> None:
        async with controlling(Fleet()) as controller:
            reply = controller.scale("decode", 5, dry_run=True)
            assert reply == pb.ScaleReply(previous=2, target=5, least=1, most=64)
            assert controller.pools["decode"].target == 2

    run(test())


def test_a_new_controller_adopts_instances_and_the_targets_that_were_set_live() -> None:
    async def test() -> None:
        fleet = Fleet()
        async with controlling(fleet) as first:
            await seen(first, "ready", 3)
            first.scale("decode", 3)
            await seen(first, "ready", 4)
            for member in first.pools["prefill"].members.values():
                member.polled.clear()
                await member.polled.wait()
        async with controlling(fleet) as second:
            await seen(second, "ready", 4)
            assert kinds(second, "decode-2") == ["adopted", "ready"]
            assert second.generation == first.generation + 1
            assert second.pools["decode"].target == 3
            fleet["decode-0"].die("killed")
            await seen(second, "ready", subject="decode-3")
            assert len(fleet.made) == 5

    run(test())


def test_a_new_controller_goes_on_from_the_last_word_even_where_only_one_instance_has_heard_it() -> None:
    async def test() -> None:
        fleet = Fleet()
        async with controlling(fleet) as first:
            await seen(first, "ready", 3)
            before = fleet["decode-0"].left
            first.scale("decode", 3)
            await seen(first, "ready", 4)
            heard = fleet["decode-2"].left
        for one in fleet.made.values():
            one.left = heard if one.name == "decode-2" else before
        async with controlling(fleet) as second:
            assert second.pools["decode"].target == 3
            await seen(second, "ready", 4)

    run(test())


def test_instances_of_another_configuration_are_drained_and_replaced() -> None:
    async def test() -> None:
        fleet = Fleet()
        async with controlling(fleet) as first:
            await seen(first, "ready", 3)
        other = CONFIG.model_copy(update={"engine": EngineConfig(token_budget=64)})
        async with controlling(fleet, other) as second:
            await seen(second, "drained", 3)
            await seen(second, "ready", subject="decode-3")
            assert "other settings" in (await seen(second, "draining")).reason

    run(test())


def test_an_older_controller_is_fenced_and_does_nothing_more() -> None:
    async def test() -> None:
        fleet = Fleet()
        async with controlling(fleet) as old:
            await seen(old, "ready", 3)
            async with controlling(fleet) as new:
                await seen(new, "ready", 3)
                await seen(old, "fenced")
                with pytest.raises(TandemError, match="fenced"):
                    old.check()
                new.check()
                made = len(fleet.made)
                fleet["decode-0"].die("killed")
                await seen(new, "ready", subject="decode-2")
                assert len(fleet.made) == made + 1

    run(test())


def test_a_placement_with_a_handoff_carries_the_address_of_its_destination() -> None:
    async def test() -> None:
        async with controlling(Fleet()) as controller:
            await seen(controller, "ready", 3)
            answer = controller.place(pb.PlaceRequest(request_id="r", prompt_tokens=99, max_tokens=9))
            assert (answer.prefill, answer.decode) == ("prefill-0", "decode-0")
            assert answer.decode_address.tcp == "host-of-decode-0:1"
            short = controller.place(pb.PlaceRequest(request_id="s", prompt_tokens=9, max_tokens=9))
            assert not short.HasField("decode_address")

    run(test())


def test_a_placement_that_fails_carries_the_error() -> None:
    async def test() -> None:
        fleet = Fleet()
        fleet.prepare = lambda one: one.loaded.clear()
        async with controlling(fleet) as controller:
            answer = controller.place(pb.PlaceRequest(request_id="r", prompt_tokens=99, max_tokens=9))
            assert answer.error.code == "no_prefill_instance"

    run(test())


def test_a_cluster_of_none_tells_of_its_model() -> None:
    """Of the last that was there, and of the settings before there was any."""

    async def test() -> None:
        fleet = Fleet()
        there = pb.Model(name="tiny", path="/models/tiny", dtype="float32", max_length=64, digest="d")
        config = CONFIG.model_copy(update={"model": ModelConfig(path="/models/tiny", name="tiny")})
        fleet.prepare = lambda one: one.loaded.clear()
        async with controlling(fleet, config) as controller:
            await seen(controller, "spawned", 3)
            assert controller.status().model == pb.Model(name="tiny", path="/models/tiny")
            for one in fleet.made.values():
                one.model.CopyFrom(there)
                one.loaded.set()
            await seen(controller, "ready", 3)
            assert controller.status().model == there
            for pool in ("prefill", "decode"):
                controller.scale(pool, 0, least=0)
            await until(lambda: not controller.status().instances)
            assert (controller.status().ready, controller.status().model) == (True, there)

    run(test())


def test_a_gateway_is_listed_while_it_beats(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gateways, "SILENCE", 0.1)

    async def test() -> None:
        async with controlling(Fleet()) as controller:
            controller.join(pb.Gateway(name="gateway-0", url="http://127.0.0.1:8000", home="127.0.0.1:1"))
            assert [gateway.name for gateway in controller.status().gateways] == ["gateway-0"]
            await seen(controller, "left", subject="gateway-0")
            assert not controller.status().gateways

    run(test())
