"""Where settings come from: what a start says of them, and what the controller makes of it later."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from cluster import control_pb2 as pb
from cluster.cli.options import start_config
from cluster.config import Config
from cluster.config_origins import explained, guessed, named, settled
from cluster.settings_change import masked, with_settings
from engine.errors import ConfigError


def told(
    running: Config, deployed: Config, origins: dict[str, str], events: Sequence[pb.Event] = ()
) -> dict[str, str]:
    return {key: origin for key, _, origin in explained(running, deployed, origins, events)}


def test_a_start_tells_the_layer_of_each_value_and_what_it_settled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TANDEM_ENGINE__TOKEN_BUDGET", "64")
    Path("t.yaml").write_text("log:\n  level: error\ngateway: {api_keys: [secret-key]}\n")
    given, found = start_config(
        Path("t.yaml"),
        {"model.path": "m", "gateway.port": 0, "log.format": "json"},
        {"model.path": "--model", "gateway.port": "--port"},
    )
    made = with_settings(
        given,
        {"model.path": "/whole/m", "gateway.port": 4711, "control.port": 4712, "control.token": "drawn"},
    )
    origins = told(made, made, named(settled(found, given, made)))
    assert origins["log.level"] == f"{tmp_path}/t.yaml:2:10"
    assert origins["engine.token_budget"] == "TANDEM_ENGINE__TOKEN_BUDGET"
    assert origins["log.format"] == "--set log.format"
    assert origins["model.path"] == "--model, settled at the start"
    assert origins["gateway.port"] == "--port, settled at the start"
    assert origins["control.port"] == origins["control.token"] == "settled at the start"
    assert origins["gateway.host"] == "default"
    assert not [text for text in origins.values() if "drawn" in text or "secret-key" in text]


def test_a_start_that_has_a_wrong_setting_names_all_of_them() -> None:
    with pytest.raises(ConfigError, match=r"(?s)--port.*log\.level"):
        start_config(None, {"gateway.port": -1, "log.level": "loud"}, {"gateway.port": "--port"})


def test_what_has_changed_since_the_start_is_told_by_its_event() -> None:
    running = with_settings(
        Config(),
        {
            "pools.decode.replicas": 5,
            "pools.decode.max_replicas": 9,
            "pools.decode.resources": {"gpu": 1},
            "engine.token_budget": 96,
            "log.level": "debug",
            "pools.prefill.autoscale.enabled": True,
        },
    )
    events = [
        pb.Event(id=1, time=1.0, kind="applied", subject="engine.token_budget", reason="from 256 to 96"),
        pb.Event(id=2, time=2.0, kind="scaled", subject="decode", reason="from 2 to 4, by request"),
        pb.Event(id=3, time=3.0, kind="scaled", subject="decode", reason="from 4 to 5, by request"),
        pb.Event(id=4, time=64.0, kind="bounds", subject="decode", reason="1 to 9 instances, by request"),
        pb.Event(id=5, time=5.0, kind="autoscale", subject="prefill", reason="on: the controller sizes it"),
        pb.Event(id=6, time=6.0, kind="autoscale", subject="prefill", reason="decode-0 changes its role: …"),
        pb.Event(id=7, time=7.0, kind="applied", subject="pools.decode.resources", reason="from {} to …"),
        pb.Event(id=8, time=8.0, kind="not_applied", subject="log.level", reason="from info to debug: …"),
    ]
    origins = told(running, Config(), {}, events)
    assert origins["engine.token_budget"] == "applied at 00:00:01 UTC, event 1"
    assert origins["pools.decode.replicas"] == "scaled at 00:00:03 UTC, event 3"
    assert origins["pools.decode.max_replicas"] == "bounds at 00:01:04 UTC, event 4"
    assert origins["pools.decode.min_replicas"] == "default", "it is as it was"
    assert origins["pools.prefill.autoscale.enabled"] == "autoscale at 00:00:05 UTC, event 5"
    assert origins["pools.decode.resources.gpu"] == "applied at 00:00:07 UTC, event 7"
    assert origins["log.level"] == "changed since the start", "the controller has forgotten by what"


def test_an_instance_that_changes_its_role_changes_the_size_of_both_pools() -> None:
    running = with_settings(Config(), {"pools.decode.replicas": 1, "pools.prefill.replicas": 2})
    events = [
        pb.Event(id=1, kind="scaled", subject="decode", reason="from 2 to 3, by request"),
        pb.Event(id=2, kind="role", subject="decode-1", reason="prefill now, after 0.1 s"),
    ]
    origins = told(running, Config(), {}, events)
    for pool in ("decode", "prefill"):
        assert origins[f"pools.{pool}.replicas"] == "role at 00:00:00 UTC, event 2"


def test_where_a_start_said_nothing_it_is_set_or_default() -> None:
    config = with_settings(Config(), {"log.level": "debug"})
    for origins in (told(config, config, {}), guessed(masked(config))):
        assert (origins["log.level"], origins["log.format"]) == ("set", "default")
        assert set(origins.values()) == {"set", "default"}
