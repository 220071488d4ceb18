"""The admin API: it shows what the controller knows, does what it says, and asks everybody for its token."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
import pytest

from cluster import control_pb2 as pb
from cluster.admin import build_admin
from cluster.admin_auth import Gate
from cluster.admin_service import AdminService
from cluster.app import _load
from cluster.config_origins import named
from cluster.control import ControlService
from cluster.controller import Controller
from cluster.message_json import plain
from tests.cluster.made_up import CONFIG, Fleet, controlling, run, seen

TOKEN = "an admin token for tests"
READS = [
    "status",
    "pools",
    "instances",
    "requests",
    "timelines",
    "migrations",
    "events",
    "explanations",
    "history",
    "config",
]
ACTIONS = [
    ("pools/decode/scale", {"replicas": 3}),
    ("instances/decode-0/cordon", {}),
    ("instances/decode-0/uncordon", {}),
    ("instances/decode-0/drain", {}),
    ("instances/decode-0/role", {"role": "prefill"}),
    ("requests/r/migrate", {"to": "decode-1"}),
    ("apply", {"settings": {"pools.decode.max_replicas": 12}}),
    ("restart", {"what": "decode-0"}),
    ("rebalance", {"dry_run": True}),
]


class Admin:
    def __init__(self, controller: Controller, fleet: Fleet) -> None:
        self.controller = controller
        self.fleet = fleet
        app = build_admin(AdminService(controller), Gate(TOKEN, 60.0))
        self.client = httpx.AsyncClient(
            transport=httpx.ASGITransport(app),
            base_url="http://admin",
            headers={"authorization": f"Bearer {TOKEN}"},
        )

    async def get(self, path: str) -> list[dict[str, object]]:
        answer = await self.client.get(f"/admin/v1/{path}")
        assert answer.status_code == 200, answer.text
        body = answer.json()
        assert body["apiVersion"] == "tandem.dev/v1"
        items: list[dict[str, object]] = body["items"]
        return items

    async def post(self, path: str, body: object = None) -> httpx.Response:
        return await self.client.post(f"/admin/v1/{path}", json={} if body is None else body)


@asynccontextmanager
async def administering() -> AsyncIterator[Admin]:
    fleet = Fleet()
    async with controlling(fleet) as controller:
        for _ in range(3):
            await seen(controller, "ready", 3)
        admin = Admin(controller, fleet)
        async with admin.client:
            yield admin


def with_admin(test: Callable[[Admin], Awaitable[None]]) -> None:
    async def inside() -> None:
        async with administering() as admin:
            await test(admin)

    run(inside())


def test_lists_are_those_of_the_control_service() -> None:
    async def test(admin: Admin) -> None:
        status = admin.controller.status()
        assert await admin.get("pools") == [plain(pool) for pool in status.pools]
        assert [one["name"] for one in await admin.get("instances")] == [one.name for one in status.instances]
        assert (await admin.get("status"))[0]["version"] == "test"
        assert await admin.get("events") == [plain(event) for event in admin.controller.events.after(0)]
        admin.fleet["decode-0"].run("r~1-0")
        (request,) = await admin.get("requests")
        assert (request["id"], request["instance"], request["phase"]) == ("r~1-0", "decode-0", "decode")

    with_admin(test)


def test_one_thing_is_found_by_its_name() -> None:
    async def test(admin: Admin) -> None:
        (pool,) = await admin.get("pools/decode")
        assert pool["target"] == 2
        (one,) = await admin.get("instances/decode-1")
        assert one["name"] == "decode-1"
        answer = await admin.client.get("/admin/v1/instances/decode-9")
        assert (answer.status_code, answer.json()["error"]["code"]) == (404, "not_found")

    with_admin(test)


def test_decisions_are_told_with_their_reasons() -> None:
    async def test(admin: Admin) -> None:
        admin.controller.place(pb.PlaceRequest(request_id="r~1-0", prompt_tokens=100, max_tokens=5))
        (one,) = await admin.get("explanations")
        assert (one["kind"], one["subject"]) == ("placement", "r~1-0")
        assert one["reason"]
        assert await admin.get("explanations/r") == [one]
        assert (await admin.client.get("/admin/v1/explanations/nobody")).status_code == 404

    with_admin(test)


def test_the_config_says_what_was_set_and_masks_secrets() -> None:
    async def test(admin: Admin) -> None:
        found = {one["key"]: one for one in await admin.get("config")}
        assert found["control.token"]["value"] == "…"
        assert found["control.beat"] == {"key": "control.beat", "value": "10ms", "origin": "set"}
        assert found["gateway.port"]["origin"] == "default"
        assert CONFIG.control.token not in (await admin.client.get("/admin/v1/config")).text

    with_admin(test)


def test_the_config_says_where_it_was_set_and_what_has_changed_since() -> None:
    async def test(admin: Admin) -> None:
        admin.controller.origins = {
            "control.beat": "tandem.yaml:4:9",
            "control.token": "TANDEM_CONTROL__TOKEN",
            "control.drain_timeout": "default",
            "gateway.port": "default",
            "pools.decode.replicas": "--decode",
        }
        before = {one["key"]: one["origin"] for one in await admin.get("config")}
        assert before["control.beat"] == "tandem.yaml:4:9"
        assert before["control.token"] == "TANDEM_CONTROL__TOKEN"
        assert before["control.drain_timeout"] == "settled at the start", "it is not what the default says"
        assert before["gateway.port"] == "default"
        assert before["pools.decode.replicas"] == "--decode"
        admin.controller.scale("decode", 3)
        await admin.client.post("/admin/v1/apply", json={"settings": {"pools.decode.max_replicas": 12}})
        after = {one["key"]: (one["value"], one["origin"]) for one in await admin.get("config")}
        latest = {event.kind: event.id for event in admin.controller.events.after(0)}
        size, origin = after["pools.decode.replicas"]
        assert size == 3
        assert re.fullmatch(rf"scaled at \d\d:\d\d:\d\d UTC, event {latest['scaled']}", str(origin))
        most, origin = after["pools.decode.max_replicas"]
        assert most == 12
        assert re.fullmatch(rf"bounds at \d\d:\d\d:\d\d UTC, event {latest['bounds']}", str(origin))
        assert after["control.beat"] == ("10ms", "tandem.yaml:4:9")
        reply = await ControlService(admin.controller).GetConfig(pb.ConfigRequest(), None)
        assert dict(reply.origins) == {key: origin for key, (_, origin) in after.items()}, "one source"

    with_admin(test)


def test_arguments_of_the_application_say_where_they_come_from(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As `serve run` and the manifests give them."""
    file = tmp_path / "tandem.yaml"
    file.write_text("gateway:\n  port: 8000\n  replicas: 2\n")
    monkeypatch.setenv("TANDEM_ENGINE__THREADS", "1")
    config, origins = _load({"config": str(file), "gateway.port": "8001"})
    told = named(origins)
    assert config.gateway.port == 8001
    assert told["gateway.port"] == "args: gateway.port"
    assert told["gateway.replicas"] == f"{file}:3:13"
    assert told["engine.threads"] == "TANDEM_ENGINE__THREADS"
    assert told["admin.port"] == "default"


def test_events_are_waited_for() -> None:
    async def test(admin: Admin) -> None:
        last = max(event.id for event in admin.controller.events.after(0))
        waiting = asyncio.create_task(admin.get(f"events?after={last}&wait=5"))
        await asyncio.sleep(0)
        admin.controller.events.add("planned", "decode", "for a test")
        assert [event["kind"] for event in await waiting] == ["planned"]
        assert await admin.get(f"events?after={last + 1}&wait=0.01") == []

    with_admin(test)


def test_a_pool_is_scaled_within_its_bounds() -> None:
    async def test(admin: Admin) -> None:
        answer = await admin.post("pools/decode/scale", {"replicas": 3, "dry_run": True})
        (reply,) = answer.json()["items"]
        assert (reply["previous"], reply["target"]) == (2, 3)
        assert admin.controller.pools["decode"].target == 2
        assert (await admin.post("pools/decode/scale", {"replicas": 3})).status_code == 200
        assert admin.controller.pools["decode"].target == 3
        refused = await admin.post("pools/decode/scale", {"replicas": 65})
        assert (refused.status_code, refused.json()["error"]["param"]) == (409, "replicas")
        assert (await admin.post("pools/dekode/scale", {"replicas": 3})).status_code == 404

    with_admin(test)


def test_a_pool_is_given_bounds_and_left_to_the_controller() -> None:
    async def test(admin: Admin) -> None:
        (reply,) = (await admin.post("pools/decode/scale", {"min": 2, "max": 5})).json()["items"]
        assert (reply["least"], reply["most"]) == (2, 5)
        (pool,) = await admin.get("pools/decode")
        assert (pool["least"], pool["most"]) == (2, 5)
        (reply,) = (await admin.post("pools/decode/scale", {"auto": True})).json()["items"]
        assert reply["autoscale"]
        (reply,) = (await admin.post("pools/decode/scale", {"replicas": 3})).json()["items"]
        assert (reply["target"], reply["autoscale_ended"]) == (3, True)
        crossed = await admin.post("pools/decode/scale", {"min": 9, "max": 2})
        assert crossed.status_code == 409, crossed.text

    with_admin(test)


def test_settings_are_applied_and_instances_replaced() -> None:
    async def test(admin: Admin) -> None:
        body = {"settings": {"pools.decode.max_replicas": 12}}
        for dry in (True, False):
            (reply,) = (await admin.post("apply", {**body, "dry_run": dry})).json()["items"]
            (change,) = reply["changes"]
            assert (change["path"], change["after"]) == ("pools.decode.max_replicas", "12")
            assert change["effect"] == "at_once"
            (pool,) = await admin.get("pools/decode")
            assert (pool["most"] == 12) is not dry
        (reply,) = (await admin.post("restart", {"what": "decode-0", "dry_run": True})).json()["items"]
        assert reply["instances"] == ["decode-0"]
        assert "decode-0" in admin.controller.pools["decode"].members
        await admin.post("restart", {"what": "decode-0"})
        await seen(admin.controller, "ready", 4)

    with_admin(test)


def test_an_instance_is_cordoned_drained_and_given_another_role() -> None:
    async def test(admin: Admin) -> None:
        admin.fleet["decode-0"].run("r~1-0")
        (one,) = (await admin.post("instances/decode-0/cordon")).json()["items"]
        assert one["cordoned"]
        assert admin.fleet["decode-0"].cordoned
        (one,) = (await admin.post("instances/decode-0/uncordon")).json()["items"]
        assert not one["cordoned"]
        (one,) = (await admin.post("instances/decode-0/drain", {"deadline": 3})).json()["items"]
        assert one["state"] == "draining"
        await seen(admin.controller, "drained")
        assert not admin.fleet["decode-0"].running
        assert (await admin.post("instances/decode-0/role", {"role": "prefill"})).status_code == 200
        await seen(admin.controller, "role")

    with_admin(test)


def test_a_request_is_moved_and_the_move_remembered() -> None:
    async def test(admin: Admin) -> None:
        admin.fleet["decode-0"].run("r~1-0")
        (move,) = (await admin.post("requests/r/migrate", {"to": "decode-1"})).json()["items"]
        assert (move["outcome"], move["cause"]) == ("committed", "operator")
        assert await admin.get("migrations") == [move]
        assert await admin.get("migrations?request=r") == [move]
        assert await admin.get("migrations?request=other") == []

    with_admin(test)


@pytest.mark.parametrize(
    ("path", "body", "status", "param"),
    [
        ("pools/decode/scale", {"replicas": "3"}, 400, "replicas"),
        ("pools/decode/scale", {}, 400, "replicas"),
        ("pools/decode/scale", {"replicas": -1}, 400, "replicas"),
        ("pools/decode/scale", {"replicas": 3, "wait": True}, 400, "wait"),
        ("pools/decode/scale", [3], 400, None),
        ("instances/decode-0/role", {"role": "encode"}, 400, "role"),
        ("instances/decode-0/drain", {"deadline": -1}, 400, "deadline"),
        ("instances/decode-0/restart", {}, 404, None),
        ("requests/none/migrate", {"to": "decode-1"}, 404, "request"),
        ("apply", {}, 400, "settings"),
        ("apply", {"settings": {"scheduler.no_such_key": 1}}, 400, "settings"),
        ("apply", {"settings": {"pools.decode.max_replicas": "many"}}, 400, "settings"),
        ("restart", {"what": "decode-9"}, 404, "what"),
    ],
)
def test_what_cannot_be_done_is_refused_by_field(
    path: str, body: object, status: int, param: str | None
) -> None:
    async def test(admin: Admin) -> None:
        answer = await admin.post(path, body)
        error = answer.json()["error"]
        assert (answer.status_code, error["param"]) == (status, param), error
        assert set(error) == {"message", "type", "param", "code"}

    with_admin(test)


def test_wrong_methods_and_numbers_are_refused() -> None:
    async def test(admin: Admin) -> None:
        assert (await admin.client.delete("/admin/v1/pools")).status_code == 405
        assert (await admin.client.get("/admin/v1/events?after=-1")).json()["error"]["param"] == "after"
        assert (await admin.client.get("/admin/v1/nothing")).status_code == 404

    with_admin(test)


def test_nothing_but_health_is_answered_without_the_token() -> None:
    async def test(admin: Admin) -> None:
        for wrong in ({}, {"authorization": "Bearer other"}, {"authorization": TOKEN}):
            client = httpx.AsyncClient(
                transport=admin.client._transport, base_url="http://admin", headers=wrong
            )
            assert (await client.get("/health")).status_code == 200
            answers = [await client.get(f"/admin/v1/{path}") for path in READS]
            answers += [await client.post(f"/admin/v1/{path}", json=body) for path, body in ACTIONS]
            answers += [await client.get("/admin/v1"), await client.get("/admin/v1/nothing")]
            assert {answer.status_code for answer in answers} == {401}
            assert answers[0].headers["www-authenticate"] == "Bearer"
            assert answers[0].json()["error"]["code"] == "invalid_api_key"
        assert admin.controller.pools["decode"].target == 2
        assert not admin.fleet["decode-0"].cordoned

    with_admin(test)


def test_every_answer_forbids_other_origins_and_being_kept() -> None:
    async def test(admin: Admin) -> None:
        for answer in (await admin.client.get("/admin/v1/pools"), await admin.client.get("/health")):
            assert answer.headers["content-security-policy"].startswith("default-src 'self'")
            assert answer.headers["cache-control"] == "no-store"
            assert answer.headers["x-content-type-options"] == "nosniff"

    with_admin(test)
