"""tandem config: what files set, where it comes from, and what a running cluster has."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from cluster.cli.failures import Exit
from cluster.config import Config
from cluster.settings_change import masked, with_settings
from tests.cluster.cli_controller import Controller, items, run


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


def test_a_running_cluster_tells_where_its_values_come_from(controller: Controller) -> None:
    controller.config = {"log": {"level": "debug", "format": "json"}, "pools": {"decode": {"replicas": 5}}}
    controller.origins = {
        "log.level": "/etc/tandem/tandem.yaml:2:10",
        "log.format": "default",
        "pools.decode.replicas": "scaled at 12:03:11 UTC, event 17",
    }
    result = run("config", "show", "--running", "--origin", "-o", "json")
    assert items(result) == [
        {"key": "log.level", "value": "debug", "origin": "/etc/tandem/tandem.yaml:2:10"},
        {"key": "log.format", "value": "json", "origin": "default"},
        {"key": "pools.decode.replicas", "value": 5, "origin": "scaled at 12:03:11 UTC, event 17"},
    ]
    assert not result.stderr
    table = run("config", "show", "--running", "--origin").stdout
    assert ["pools.decode.replicas", "5", "scaled"] in [line.split()[:3] for line in table.splitlines()]


def test_a_controller_that_tells_no_origins_is_named_as_one(controller: Controller) -> None:
    controller.config = masked(with_settings(Config(), {"log.level": "debug"}))
    result = run("config", "show", "--running", "--origin", "-o", "json")
    told = {one["key"]: one["origin"] for one in items(result)}
    assert (told["log.level"], told["log.format"]) == ("set", "default")
    assert result.stderr.startswith("note: this controller is of a version that does not tell where")
    assert not run("config", "show", "--running", "--origin", "-q").stderr
