"""tandem config: what files set, where it comes from, and what a running cluster has."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import yaml
from typer.testing import Result

from cluster import control_pb2 as pb
from cluster.cli.failures import Exit
from cluster.cli.listing import clock
from cluster.cli.origins import start_config, write_origins
from cluster.local_state import LocalState, write_state
from cluster.settings_change import masked, with_settings
from engine.errors import ConfigError
from tests.cluster.cli_controller import TOKEN, Controller, items, run


def test_config_show_masks_secrets(state_home: Path) -> None:
    result = run(
        "config", "show", "--set", "control.token=abc", "--set", "gateway.api_keys=[k]", "-o", "json"
    )
    (config,) = items(result)
    assert (config["control"]["token"], config["gateway"]["api_keys"]) == ("…", "…")
    assert "abc" not in result.stdout


def test_config_show_says_where_a_value_comes_from(state_home: Path, tmp_path: Path) -> None:
    file = tmp_path / "t.yaml"
    file.write_text("log:\n  level: error\n")
    found = {
        one["key"]: one for one in items(run("config", "show", "--origin", "-f", str(file), "-o", "json"))
    }
    assert found["log.level"] == {"key": "log.level", "value": "error", "origin": f"{file}:2:10"}
    assert found["gateway.port"]["origin"] == "default"


def test_config_validate_lists_problems_as_json(state_home: Path, tmp_path: Path) -> None:
    file = tmp_path / "t.yaml"
    file.write_text("log: {level: loud}\nx: 1\n")
    result = run("config", "validate", str(file), "-o", "json")
    assert result.exit_code == Exit.USAGE
    assert items(result)[0] == {
        "at": {"source": str(file), "line": 1, "column": 14},
        "path": "log.level",
        "message": 'expected one of debug, info, warning, error, got "loud"',
    }


def test_config_show_can_ask_the_running_cluster(controller: Controller) -> None:
    assert yaml.safe_load(run("config", "show", "--running").stdout) == {"log": {"level": "debug"}}
    (config,) = items(run("config", "show", "--running", "-o", "json"))
    assert config == {"log": {"level": "debug"}}


@pytest.mark.parametrize("flags", [("--set", "log.level=debug"), ("-f", "t.yaml")])
def test_a_running_cluster_has_no_files(controller: Controller, flags: tuple[str, ...]) -> None:
    result = run("config", "show", "--running", *flags)
    assert result.exit_code == Exit.USAGE
    assert "--running goes with neither" in result.stderr


def origins(result: Result) -> dict[str, str]:
    return {one["key"]: one["origin"] for one in items(result)}


def test_a_running_cluster_tells_the_layer_of_each_value(
    controller: Controller, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TANDEM_ENGINE__TOKEN_BUDGET", "64")
    Path("t.yaml").write_text("log:\n  level: error\ngateway: {api_keys: [secret-key]}\n")
    given, found = start_config(
        Path("t.yaml"), {"model.path": "/m", "log.format": "json"}, {"model.path": "--model"}
    )
    drawn = given.control.model_copy(update={"port": 4711, "token": "drawn"})
    moved = given.model.model_copy(update={"path": "/whole/m"})
    settled = given.model_copy(update={"control": drawn, "model": moved})
    write_origins(found, given, settled)
    record(controller, os.getpid())
    controller.config = masked(settled)
    result = run("config", "show", "--running", "--origin", "-o", "json")
    told = origins(result)
    assert told["log.level"] == f"{tmp_path}/t.yaml:2:10"
    assert told["engine.token_budget"] == "TANDEM_ENGINE__TOKEN_BUDGET"
    assert told["log.format"] == "--set log.format"
    assert told["model.path"] == "--model, settled at the start"
    assert told["control.port"] == told["control.token"] == "settled at the start"
    assert told["gateway.port"] == "default"
    assert not result.stderr
    written = (tmp_path / "tandem/origins.json").read_text()
    assert "drawn" not in written and "secret-key" not in written
    assert "log.level  " in run("config", "show", "--running", "--origin").stdout


def test_what_was_changed_since_the_start_is_told_by_its_event(
    controller: Controller, tmp_path: Path
) -> None:
    given, found = start_config(None, {}, {})
    write_origins(found, given, given)
    record(controller, os.getpid())
    controller.config = masked(
        with_settings(
            given,
            {
                "pools.decode.replicas": 5,
                "pools.decode.max_replicas": 9,
                "engine.token_budget": 96,
                "log.level": "debug",
                "pools.prefill.autoscale.enabled": True,
            },
        )
    )
    controller.events = [
        pb.Event(id=1, time=1.0, kind="applied", subject="engine.token_budget", reason="from 256 to 96"),
        pb.Event(id=2, time=2.0, kind="scaled", subject="decode", reason="from 2 to 4, by request"),
        pb.Event(id=3, time=3.0, kind="scaled", subject="decode", reason="from 4 to 5, by request"),
        pb.Event(id=4, time=4.0, kind="bounds", subject="decode", reason="1 to 9 instances, by request"),
        pb.Event(id=5, time=5.0, kind="autoscale", subject="prefill", reason="on: the controller sizes it"),
        pb.Event(id=6, time=6.0, kind="autoscale", subject="prefill", reason="decode-0 changes its role: …"),
    ]
    told = origins(run("config", "show", "--running", "--origin", "-o", "json"))
    assert told["engine.token_budget"] == f"applied at {clock(1.0)}, event 1"
    assert told["pools.decode.replicas"] == f"scaled at {clock(3.0)}, event 3"
    assert told["pools.decode.max_replicas"] == f"bounds at {clock(4.0)}, event 4"
    assert told["pools.decode.min_replicas"] == "default", "it is as it was"
    assert told["pools.prefill.autoscale.enabled"] == f"autoscale at {clock(5.0)}, event 5"
    assert told["log.level"] == "changed since the start", "the controller has forgotten by what"


@pytest.mark.parametrize("elsewhere", [False, True], ids=["another start", "another address"])
def test_where_the_start_is_not_known_that_is_said(controller: Controller, elsewhere: bool) -> None:
    given, found = start_config(None, {"log.level": "debug"}, {})
    write_origins(found, given, given)
    controller.config = masked(given)
    record(controller, os.getpid() + 1 - elsewhere)
    address = controller.address.replace("127.0.0.1", "localhost")
    there = ("--address", address, "--token", TOKEN) if elsewhere else ()
    result = run("config", "show", "--running", "--origin", "-o", "json", *there)
    told = origins(result)
    assert (told["log.level"], told["log.format"]) == ("set", "default")
    assert "note: files, variables and flags of its start are not known here" in result.stderr


def test_a_start_that_has_a_wrong_setting_names_all_of_them() -> None:
    with pytest.raises(ConfigError, match=r"(?s)--port.*log\.level"):
        start_config(None, {"gateway.port": -1, "log.level": "loud"}, {"gateway.port": "--port"})


def record(controller: Controller, pid: int) -> None:
    """The local cluster is that of the controller, and `pid` started it."""
    write_state(LocalState(pid=pid, cluster="x", scratch="/x", control=controller.address, token=TOKEN))
