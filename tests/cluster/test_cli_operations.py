"""Verbs that look at one thing or move it: get, describe, migrate, cordon, drain, role."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from cluster import control_pb2 as pb
from cluster.cli.failures import Exit
from tests.cluster.cli_controller import Controller, items, run


def test_get_lists_each_kind(controller: Controller) -> None:
    assert run("get", "pools", "--no-headers").stdout.split() == [
        "prefill",
        "1",
        "1",
        "0",
        "0",
        "decode",
        "2",
        "2",
        "0",
        "0",
    ]
    assert "decode-0  decode  ready  0" in run("get", "instances").stdout
    assert "mine~1-0" in run("get", "requests").stdout
    assert "12.3 ms" in run("get", "migrations").stdout
    assert len(run("get", "events", "--no-headers").stdout.splitlines()) == 3


@pytest.mark.parametrize(
    ("kind", "listed"),
    [
        ("pools", "PoolList"),
        ("instances", "InstanceList"),
        ("requests", "RequestList"),
        ("migrations", "MigrationList"),
        ("events", "EventList"),
    ],
)
def test_get_as_json_and_yaml_has_one_envelope(controller: Controller, kind: str, listed: str) -> None:
    found = json.loads(run("get", kind, "-o", "json").stdout)
    assert (found["apiVersion"], found["kind"]) == ("tandem.dev/v1", listed)
    assert yaml.safe_load(run("get", kind, "-o", "yaml").stdout) == found


def test_get_by_name_finds_one_or_ends_with_3(controller: Controller) -> None:
    assert run("get", "instances", "decode-0", "-o", "name").stdout == "instance/decode-0\n"
    assert run("get", "requests", "mine", "-o", "name").stdout == "request/mine~1-0\n"
    assert run("get", "instances", "decode-9").exit_code == Exit.NOT_FOUND


def test_wide_tables_say_more(controller: Controller) -> None:
    assert "PREEMPTIONS" in run("get", "instances", "-o", "wide").stdout
    assert "PREEMPTIONS" not in run("get", "instances").stdout


def test_describe_shows_an_instance_with_its_requests_moves_and_events(controller: Controller) -> None:
    shown = run("describe", "instance/decode-0").stdout
    for part in ("50 % of 10 blocks", "mine~1-0", "committed", "spawned"):
        assert part in shown
    (data,) = items(run("describe", "instance", "decode-0", "-o", "json"))
    assert [one["id"] for one in data["requests"]] == ["mine~1-0"]


def test_describe_shows_a_request_with_its_moves(controller: Controller) -> None:
    shown = run("describe", "request", "mine").stdout
    assert "decode-0" in shown
    assert "committed" in shown
    assert run("describe", "request/yours").exit_code == Exit.NOT_FOUND
    assert run("describe", "node", "decode").exit_code == Exit.USAGE


def test_migrate_says_what_it_cost_when_it_waits(controller: Controller) -> None:
    assert run("migrate", "mine", "--to", "decode-1").stdout == "mine~1-0 moves from a to b\n"
    told = run("migrate", "mine", "--to", "decode-1", "--wait")
    assert "2 stages, 4096 bytes, 12.3 ms without a token" in told.stdout
    assert "moving mine to decode-1" in told.stderr
    assert run("migrate", "yours", "--to", "decode-1").exit_code == Exit.NOT_FOUND


def test_a_move_that_is_aborted_ends_with_1_and_the_reason(controller: Controller) -> None:
    controller.moved.outcome, controller.moved.detail = "aborted", "the destination has no room"
    told = run("migrate", "mine", "--to", "decode-1", "--wait")
    assert told.exit_code == Exit.FAILED
    assert "the destination has no room" in told.stderr


def test_cordon_and_uncordon(controller: Controller) -> None:
    assert run("cordon", "decode-0").stdout == "decode-0 is cordoned\n"
    assert "ready,cordoned" in run("status").stdout
    assert run("uncordon", "decode-0").stdout == "decode-0 takes requests again\n"


def test_drain_waits_until_the_instance_is_empty(controller: Controller) -> None:
    assert run("drain", "decode-0", "--deadline", "7s").stdout == "decode-0 is being drained\n"
    assert controller.asked[0].deadline == 7.0
    assert run("drain", "decode-0", "--wait").stdout == "decode-0 is drained\n"


def test_a_drain_whose_requests_stay_ends_with_5(controller: Controller) -> None:
    controller.instance.status.running = 2
    told = run("drain", "decode-0", "--wait")
    assert told.exit_code == Exit.TIMEOUT
    assert "still has 2 requests" in told.stderr


def test_a_drain_that_lasts_longer_than_the_patience_ends_with_5(controller: Controller) -> None:
    controller.instance.state = "draining"
    assert run("drain", "decode-0", "--wait", "--timeout", "10ms").exit_code == Exit.TIMEOUT


def test_role_waits_for_the_change_and_says_why_there_was_none(controller: Controller) -> None:
    assert run("role", "decode-0", "prefill").stdout == "decode-0 will be a prefill instance\n"
    told = run("role", "decode-0", "prefill", "--wait")
    assert told.exit_code == Exit.FAILED
    controller.instance.role = "prefill"
    assert run("role", "decode-0", "prefill", "--wait").stdout == "decode-0 is a prefill instance\n"


def test_rebalance_shows_what_moved_or_would_move_and_why_nothing_did(controller: Controller) -> None:
    assert "decode-0  decode-1  -         planned  1.0 blocks" in run("rebalance", "--dry-run").stdout
    assert controller.asked[-1].dry_run
    assert "12.3 ms   committed" in run("rebalance").stdout
    assert not controller.asked[-1].dry_run
    assert items(run("rebalance", "-o", "json"))[0]["outcome"] == "committed"
    controller.stuck = True
    assert run("rebalance").stdout == "nothing moved: nobody is crowded\n"
    assert json.loads(run("rebalance", "-o", "json").stdout) == {
        "apiVersion": "tandem.dev/v1",
        "kind": "MigrationList",
        "items": [],
    }


def test_trace_export_writes_a_file_or_stdout_and_knows_who_is_not_there(
    controller: Controller, tmp_path: Path
) -> None:
    controller.timelines = [
        pb.Timeline(
            id=f"{name}~1-0", gateway="gateway-0", seconds=1, phases=[pb.Phase(name="admit", seconds=1)]
        )
        for name in ("mine", "yours")
    ]
    file = tmp_path / "t.json"
    done = run("trace", "export", "-f", str(file))
    assert (done.exit_code, done.stdout) == (0, "") and "2 requests: open" in done.stderr
    written = json.loads(file.read_text())
    assert [one["name"] for one in written["traceEvents"] if one["ph"] == "X"] == ["request", "admit"] * 2
    one = json.loads(run("trace", "export", "mine").stdout)
    assert [each["ph"] for each in one["traceEvents"]].count("X") == 2
    assert run("trace", "export", "--most", "1").stdout == run("trace", "export", "mine").stdout
    assert run("trace", "export", "nobody").exit_code == Exit.NOT_FOUND
    assert run("trace", "export", "-f", str(tmp_path / "none" / "t.json")).exit_code == Exit.USAGE
