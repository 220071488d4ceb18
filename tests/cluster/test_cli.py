"""The command line: data on stdout, messages on stderr, a stable JSON schema, and every exit code."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import EntryPoint, EntryPoints
from pathlib import Path

import pytest
from rich.console import Console

from cluster import control_pb2 as pb
from cluster.cli.failures import EXITS, Exit, failure
from cluster.cli.screen import screen
from engine import errors
from tests.cluster.cli_controller import TOKEN, Controller, items, run


def test_status_shows_pools_instances_and_gateways(controller: Controller) -> None:
    result = run("status")
    assert result.exit_code == 0
    assert result.stdout.splitlines()[0] == "tandem 0.1.0 · m · float32 · ready · up 1 m 2 s"
    rows = [line.split() for line in result.stdout.splitlines()]
    assert ["decode", "2", "2", "0", "0", "50", "%", "0", "0", "-"] in rows
    bar = "█" * 5 + "░" * 5
    assert ["decode-0", "decode", "ready", "7", "0", "0", bar, "50", "%", "5.0", "-", "0"] in rows
    assert ["gateway-0", "8", "http://127.0.0.1:8000", "0", "-", "-", "-"] in rows
    assert "controller: process 9\nmigrations: none" in result.stdout


def test_one_look_knows_rates_and_the_slo_attainment() -> None:
    def status(*rates: float) -> pb.ClusterStatus:
        lately = pb.Lately(requests=4, ttft=0.05, tpot=0.004, attainment=0.75)
        return pb.ClusterStatus(
            pools=[pb.Pool(name="decode", target=1, ready=1, autoscale=True)],
            instances=[
                pb.Instance(name=f"decode-{number}", role="decode", state="ready", tokens_per_second=rate)
                for number, rate in enumerate(rates)
            ] + [pb.Instance(name="decode-9", role="decode", state="starting")],
            gateways=[pb.Gateway(name="gateway-0", url="http://x", lately=lately)],
            migrations=pb.MigrationTotals(
                counts=[
                    pb.MigrationCount(cause=why, outcome="committed", count=2) for why in ("drain", "role")
                ]
            ),
        )  # fmt: skip

    console = Console(width=200, record=True, file=io.StringIO())
    console.print(screen(status(20.0, 5.4)))
    shown = console.export_text()
    rows = [line.split() for line in shown.splitlines()]
    assert ["decode", "1", "auto", "1", "0", "0", "-", "0", "0", "25"] in rows
    told = {row[0]: row[-2] for row in rows if row and row[0].startswith("decode-")}
    assert told == {"decode-0": "20", "decode-1": "5", "decode-9": "-"}
    assert ["gateway-0", "-", "http://x", "0", "50.0", "ms", "4.0", "ms", "75", "%"] in rows
    assert "migrations: 4 committed" in shown


def test_status_as_json_has_every_field_and_whole_numbers(controller: Controller) -> None:
    (status,) = items(run("status", "-o", "json"))
    assert list(status) == [field.name for field in pb.ClusterStatus.DESCRIPTOR.fields]
    assert list(status["pools"][1]) == [
        "name", "target", "ready", "starting", "draining", "autoscale", "wish", "least", "most", "opinion",
        "bounded", "sized",
    ]  # fmt: skip
    assert status["instances"][0]["status"]["steps"] == 2**40
    assert status["instances"][0]["address"] is None
    assert (status["controller_pid"], status["gateways"][0]["pid"]) == (9, 8)


def test_scale_sets_the_target_and_says_from_where(controller: Controller) -> None:
    result = run("scale", "decode", "--replicas", "4", "--wait")
    assert (result.exit_code, result.stdout) == (0, "decode goes from 2 to 4\n")
    assert "decode goes to 4 instances" in result.stderr
    assert controller.targets["decode"] == 4


def test_new_bounds_are_said_where_the_size_stays(controller: Controller) -> None:
    result = run("scale", "decode", "--min", "1", "--max", "40")
    assert (result.exit_code, result.stdout) == (0, "decode stays at 2; it may have 1 to 40 instances\n")


def test_a_pool_without_instances_has_nothing_to_replace(controller: Controller) -> None:
    for more in ((), ("--dry-run",)):
        result = run("restart", "prefill", *more)
        assert (result.exit_code, result.stdout) == (0, "pool prefill has no instances, nothing to replace\n")


def test_a_dry_run_changes_nothing_and_ends_with_0(controller: Controller) -> None:
    result = run("scale", "decode", "--replicas", "4", "--dry-run", "-o", "json")
    assert result.exit_code == 0
    (change,) = items(result)
    assert change | {"pool": "decode", "previous": 2, "target": 4, "dry_run": True} == change
    assert controller.targets["decode"] == 2


def test_events_are_listed_after_an_id(controller: Controller) -> None:
    assert [event["id"] for event in items(run("events", "--after", "1", "-o", "json"))] == [2, 3]


def test_watched_events_are_one_json_object_a_line(controller: Controller) -> None:
    lines = run("events", "-w", "-o", "json").stdout.splitlines()
    assert [json.loads(line)["id"] for line in lines] == [1, 2, 3]


def test_a_verbs_own_address_wins_over_the_global_one(controller: Controller) -> None:
    address = json.loads((Path(os.environ["XDG_STATE_HOME"]) / "tandem/local.json").read_text())["control"]
    result = run("--address", "127.0.0.1:1", "--token", TOKEN, "status", "--address", address)
    assert result.exit_code == 0


def test_1_the_operation_failed(controller: Controller) -> None:
    controller.broken = True
    result = run("status")
    assert result.exit_code == Exit.FAILED
    assert result.stderr == "error: the controller is confused\n"


@pytest.mark.parametrize(
    "arguments",
    [
        ["fly"],
        ["scale", "decode"],
        ["scale", "middle", "--replicas", "1"],
        ["scale", "decode", "--replicas", "-1"],
        ["--timeout", "10", "status"],
        ["status", "-o", "xml"],
        ["config", "validate", "/nonexistent.yaml"],
        ["config", "show", "--set", "engine.token_budget=none"],
        ["config", "show", "--set", "engine"],
        ["up", "--set", "nothing=1"],
        ["--token-file", "/nonexistent", "status"],
    ],
    ids=" ".join,
)
def test_2_usage_or_config_error(state_home: Path, arguments: list[str]) -> None:
    result = run(*arguments)
    assert result.exit_code == Exit.USAGE
    assert result.stdout == ""
    assert result.stderr


def test_3_not_found_without_a_cluster(state_home: Path) -> None:
    assert run("down").exit_code == Exit.NOT_FOUND
    result = run("status")
    assert result.exit_code == Exit.NOT_FOUND
    assert result.stderr.splitlines() == [
        "error: no local cluster is running",
        "hint: start one with `tandem up`, or name one with --address HOST:PORT",
    ]


def test_4_unreachable_when_nothing_listens(state_home: Path) -> None:
    result = run("--timeout", "200ms", "status", "--address", "127.0.0.1:1")
    assert result.exit_code == Exit.UNREACHABLE
    assert "nothing answers at 127.0.0.1:1" in result.stderr


def test_5_a_wait_timed_out(controller: Controller) -> None:
    controller.stuck = True
    result = run("scale", "decode", "--replicas", "3", "--wait", "--timeout", "300ms")
    assert result.exit_code == Exit.TIMEOUT
    assert "decode has 0 of 3 instances ready after 0.3 s" in result.stderr


def test_6_refused(controller: Controller) -> None:
    result = run("scale", "decode", "--replicas", "0")
    assert result.exit_code == Exit.REFUSED
    assert result.stderr == "error: decode cannot be scaled to 0\n"


def test_7_authentication(controller: Controller) -> None:
    result = run("status", "--token", "wrong")
    assert result.exit_code == Exit.AUTH
    assert result.stderr.splitlines() == [
        "error: the control token is missing or wrong",
        "hint: name the cluster's control.token: --token TOKEN, or tandem --token-file FILE …",
    ]


def test_130_on_sigint(controller: Controller) -> None:
    command = [sys.executable, "-P", "-c", "from cluster.cli.start import main; main()", "top"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
        assert process.stdout is not None
        process.stdout.readline()
        process.send_signal(signal.SIGINT)
        assert process.wait(10) == Exit.INTERRUPTED


def test_an_error_as_json_has_a_code_a_message_and_a_hint(state_home: Path) -> None:
    result = run("status", "-o", "json")
    assert result.exit_code == Exit.NOT_FOUND
    assert json.loads(result.stdout) == {
        "error": {
            "code": "not_found",
            "message": "no local cluster is running",
            "hint": "start one with `tandem up`, or name one with --address HOST:PORT",
        }
    }


def test_every_error_of_ours_has_an_exit_code() -> None:
    def tree(kind: type[errors.TandemError]) -> Iterator[type[errors.TandemError]]:
        yield kind
        for child in kind.__subclasses__():
            yield from tree(child)

    codes = {kind.__name__: failure(kind("x")).exit_code for kind in tree(errors.TandemError)}
    assert codes["ModelNotFound"] == Exit.NOT_FOUND
    assert codes["ModelFileError"] == codes["ConfigError"] == Exit.USAGE
    assert codes["Fenced"] == Exit.FAILED
    assert len(EXITS) < len(codes)


def test_version_names_ours_first(state_home: Path) -> None:
    (versions,) = items(run("version", "-o", "json"))
    assert next(iter(versions)) == "tandem"


def test_a_verb_of_another_package_that_cannot_load_is_named_and_the_others_work(
    state_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from cluster.cli import main

    points = EntryPoints(
        [
            EntryPoint("broken", "nothing_here:command", main.GROUP),
            EntryPoint("version", "cluster.cli.version:command", main.GROUP),
        ]
    )
    monkeypatch.setattr(main, "entry_points", points.select)
    assert run("version").exit_code == 0
    listed = run("--help")
    assert listed.exit_code == 0
    assert "version" in listed.stdout
    assert "the verb broken cannot be loaded" in listed.stderr
    assert run("broken").exit_code == 2


def test_no_verb_imports_torch_or_ray_before_it_needs_them() -> None:
    code = (
        "import sys; from typer.main import get_command; from cluster.cli.main import build;"
        "root = get_command(build()); names = root.list_commands(None);"
        "assert names and all([root.get_command(None, name) for name in names]);"
        "print(sorted({'torch', 'ray', 'cluster.cli.up'} & set(sys.modules)))"
    )
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert loaded.stdout == "['cluster.cli.up']\n", loaded.stderr
