"""The command line against a real controller of made-up instances: apply, diff, restart, describe, doctor."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner, Result

from cluster.cli.failures import Exit
from cluster.cli.main import build
from cluster.control import serve_control
from cluster.controller import Controller
from cluster.local_state import LocalState, write_state
from tests.cluster.made_up import CONFIG, CONTROL, Fleet, controlling, seen


class Live:
    """A controller in a thread of its own; `do` runs a coroutine there."""

    def __init__(
        self, controller: Controller, fleet: Fleet, loop: asyncio.AbstractEventLoop, address: str
    ) -> None:
        self.controller = controller
        self.fleet = fleet
        self.loop = loop
        self.address = address

    def do(self, work: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self.loop).result(20)


@pytest.fixture
def live(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Live]:
    for name, value in {"XDG_STATE_HOME": str(tmp_path), "NO_COLOR": "1", "COLUMNS": "240"}.items():
        monkeypatch.setenv(name, value)
    ready: Future[Live] = Future()
    over = threading.Event()

    async def main() -> None:
        fleet = Fleet()
        config = CONFIG.model_copy(update={"control": CONTROL.model_copy(update={"token": "secret"})})
        async with controlling(fleet, config) as controller:
            server, address = await serve_control(controller)
            await seen(controller, "ready", 3)
            ready.set_result(Live(controller, fleet, asyncio.get_running_loop(), address))
            await asyncio.to_thread(over.wait)
            await server.stop(None)

    thread = threading.Thread(target=lambda: asyncio.run(main()))
    thread.start()
    try:
        found = ready.result(20)
        write_state(LocalState(pid=1, cluster="x", scratch="/x", control=found.address, token="secret"))
        yield found
    finally:
        over.set()
        thread.join(20)


def run(*arguments: str) -> Result:
    return CliRunner().invoke(build(), list(arguments))


def items(result: Result) -> list[dict[str, Any]]:
    assert result.exit_code == 0, result.output
    return list(json.loads(result.stdout)["items"])


def config_file(folder: Path, **settings: Any) -> str:
    file = folder / "tandem.yaml"
    file.write_text(yaml.safe_dump(settings))
    return str(file)


def test_apply_brings_a_file_into_force_and_a_second_time_changes_nothing(live: Live, tmp_path: Path) -> None:
    file = config_file(tmp_path, pools={"decode": {"replicas": 3}})
    told = run("apply", "-f", file)
    assert told.exit_code == 0, told.output
    assert "pools.decode.replicas" in told.stdout
    assert live.controller.pools["decode"].target == 3
    assert run("apply", "-f", file).stdout == "the running cluster has these settings\n"


def test_apply_replaces_instances_where_that_is_what_it_takes(live: Live, tmp_path: Path) -> None:
    file = config_file(tmp_path, engine={"token_budget": 64}, log={"level": "info"})
    (change,) = items(run("apply", "-f", file, "-o", "json"))
    assert (change["path"], change["after"], change["effect"]) == ("engine.token_budget", "64", "instances")
    assert live.controller.config.engine.token_budget == 64
    assert live.fleet.alive == ["decode-2", "decode-3", "prefill-1"]


def test_apply_names_what_takes_a_restart_and_ends_with_6(live: Live, tmp_path: Path) -> None:
    file = config_file(tmp_path, gateway={"port": 9001}, pools={"prefill": {"replicas": 2}})
    told = run("apply", "-f", file)
    assert told.exit_code == Exit.REFUSED
    assert "not in force before a restart: gateway.port" in told.stderr
    assert live.controller.pools["prefill"].target == 2


def test_as_json_what_takes_a_restart_is_said_on_stderr_beside_the_one_object(
    live: Live, tmp_path: Path
) -> None:
    told = run("apply", "-f", config_file(tmp_path, gateway={"port": 9001}), "-o", "json")
    assert told.exit_code == Exit.REFUSED
    assert json.loads(told.stdout)["kind"] == "ChangeList"
    assert "not in force before a restart: gateway.port" in told.stderr


def test_a_dry_run_and_a_diff_change_nothing(live: Live, tmp_path: Path) -> None:
    file = config_file(tmp_path, gateway={"port": 9001}, pools={"prefill": {"replicas": 2}})
    for arguments in (["apply", "--dry-run", "-f", file], ["config", "diff", "-f", file]):
        told = run(*arguments)
        assert told.exit_code == 0
        rows = [line.split()[:3] for line in told.stdout.splitlines()]
        assert ["pools.prefill.replicas", "1", "2"] in rows
        assert ["gateway.port", "8000", "9001"] in rows
    assert live.controller.pools["prefill"].target == 1


def test_names_with_dots_are_compared_and_applied(live: Live, tmp_path: Path) -> None:
    limits = {"requests": {"acme.eu": 600, "*": 60}}
    file = config_file(tmp_path, security={"tenants": limits}, engine={"tenant_weights": {"acme.eu": 2.5}})
    wanted = {
        "engine.tenant_weights": ({}, {"acme.eu": 2.5}),
        "security.tenants.requests": ({}, limits["requests"]),
    }
    for arguments in (["config", "diff"], ["apply", "--dry-run"]):
        found = items(run(*arguments, "-f", file, "-o", "json"))
        told = {one["path"]: (json.loads(one["before"]), json.loads(one["after"])) for one in found}
        assert told == wanted
    done = run("apply", "-f", file)
    assert "not in force before a restart: security.tenants.requests" in done.stderr
    assert live.controller.config.engine.tenant_weights == {"acme.eu": 2.5}


def test_a_size_that_no_pool_may_have_is_refused_with_6_and_nothing_is_changed(
    live: Live, tmp_path: Path
) -> None:
    live.do(live.controller.renew({"pools.decode.max_replicas": 3}))
    told = run("apply", "--set", "pools.decode.replicas=3")
    assert told.exit_code == 0, told.output
    told = run("apply", "--set", "pools.decode.replicas=9")
    assert told.exit_code in (Exit.USAGE, Exit.REFUSED)
    assert live.controller.pools["decode"].target == 3


@pytest.mark.parametrize("arguments", [["apply"], ["config", "diff"], ["apply", "--set", "engine.nothing=1"]])
def test_what_says_nothing_or_nonsense_ends_with_2(live: Live, arguments: list[str]) -> None:
    assert run(*arguments).exit_code == Exit.USAGE


def test_restart_replaces_a_pool_and_waits(live: Live) -> None:
    told = run("restart", "decode")
    assert told.exit_code == 0, told.output
    assert told.stdout == "decode-0, decode-1 are replaced\n"
    assert live.fleet.alive == ["decode-2", "decode-3", "prefill-0"]
    (result,) = items(run("restart", "prefill-0", "--dry-run", "-o", "json"))
    assert result == {"instances": ["prefill-0"], "dry_run": True, "replaced": False}
    assert run("restart", "decode-0").exit_code == Exit.NOT_FOUND


def test_a_restart_that_lasts_longer_than_the_patience_ends_with_5(live: Live) -> None:
    live.fleet.prepare = lambda one: one.loaded.clear()
    assert run("restart", "decode-0", "--timeout", "50ms").exit_code == Exit.TIMEOUT
    live.fleet.prepare = lambda one: None
    for one in live.fleet.made.values():
        live.loop.call_soon_threadsafe(one.loaded.set)


def test_describe_shows_a_pool_with_its_instances_and_events(live: Live) -> None:
    shown = run("describe", "pool/decode").stdout
    for part in ("2 ready, 0 starting", "0 of 200 blocks", "decode-1", "spawned"):
        assert part in shown
    (data,) = items(run("describe", "pool", "decode", "-o", "json"))
    assert [one["name"] for one in data["members"]] == ["decode-0", "decode-1"]
    assert run("describe", "pool/encode").exit_code == Exit.NOT_FOUND


def test_describe_says_why_autoscaling_has_no_opinion_yet(live: Live) -> None:
    assert run("scale", "decode", "--auto").exit_code == 0
    shown = run("describe", "pool/decode").stdout
    assert "set by:    autoscaling: the pool has not been looked at since that was asked for\n" in shown


def test_status_names_what_waits_to_be_replaced(live: Live) -> None:
    live.fleet.prepare = lambda one: one.loaded.clear()
    live.loop.call_soon_threadsafe(live.controller.rollout.mark, "decode-1")
    live.do(seen(live.controller, "replacing"))
    assert "decode-1 will be replaced: a restart was asked for" in run("status").stdout
    live.fleet.prepare = lambda one: None
    for one in live.fleet.made.values():
        live.loop.call_soon_threadsafe(one.loaded.set)


def test_there_are_no_adapters_yet(live: Live) -> None:
    assert items(run("get", "adapters", "-o", "json")) == []
    assert run("get", "adapters", "x").exit_code == Exit.NOT_FOUND


def test_global_flags_hold_for_every_verb_and_its_own_win(live: Live) -> None:
    assert json.loads(run("-o", "json", "get", "pools").stdout)["kind"] == "PoolList"
    assert json.loads(run("--output", "json", "status").stdout)["kind"] == "ClusterStatus"
    assert run("-o", "json", "get", "pools", "-o", "name").stdout == "pool/prefill\npool/decode\n"
    assert run("--no-headers", "get", "pools").stdout.split()[0] == "prefill"
    assert run("--no-headers", "get", "pools", "--headers").stdout.split()[0] == "POOL"
    told = run("-o", "name", "status")
    assert told.exit_code == Exit.USAGE
    assert "this verb prints json, table, wide, yaml" in told.stderr


def test_colours_are_as_asked_for(live: Live, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "\x1b[" in run("--color", "always", "status").stdout
    assert "\x1b[" not in run("--color", "never", "status").stdout
    monkeypatch.delenv("FORCE_COLOR", raising=False)


def test_verbose_says_what_is_asked_of_whom(live: Live) -> None:
    told = run("-v", "status")
    assert f"Status at {live.address} took" in told.stderr
    assert "took" not in told.stdout


def test_completion_knows_verbs_and_values(live: Live) -> None:
    for shell in ("bash", "zsh", "fish"):
        assert "_TANDEM_COMPLETE" in run("completion", shell).stdout
    assert run("completion", "tcsh").exit_code == Exit.USAGE
    script = run("completion", "bash").stdout
    subprocess.run(["bash", "-n"], input=script, text=True, check=True)
    asked = os.environ | {"_TANDEM_COMPLETE": "complete_bash", "COMP_WORDS": "tandem get ", "COMP_CWORD": "2"}
    command = [sys.executable, "-P", "-c", "from cluster.cli.start import main; main()"]
    found = subprocess.run(command, env=asked, capture_output=True, text=True, timeout=60, check=False).stdout
    assert {"pools", "instances", "adapters"} <= set(found.split())
