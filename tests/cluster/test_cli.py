"""The command line: data on stdout, messages on stderr, a stable JSON schema, and every exit code."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from importlib.metadata import EntryPoint, EntryPoints
from pathlib import Path
from typing import Any

import grpc
import pytest
import yaml
from rich.console import Console
from typer.testing import CliRunner, Result

from cluster import control_pb2 as pb
from cluster import control_pb2_grpc
from cluster.cli.failures import EXITS, Exit, failure
from cluster.cli.main import build
from cluster.cli.screen import Screen
from cluster.local_state import LocalState, write_state
from engine import errors

TOKEN = "secret"


@dataclass
class Controller(control_pb2_grpc.ControlServicer):
    """A controller of two pools, whose instances are ready at once unless `stuck`."""

    stuck: bool = False
    broken: bool = False
    targets: dict[str, int] = field(default_factory=lambda: {"prefill": 1, "decode": 2})
    instance: pb.Instance = field(
        default_factory=lambda: pb.Instance(
            name="decode-0", role="decode", state="ready", pid=7,
            status=pb.InstanceStatus(
                instance="decode-0", role="decode", blocks_total=10, blocks_used=5, block_size=16, steps=2**40
            ),
        )
    )  # fmt: skip
    requests: list[pb.RunningRequest] = field(
        default_factory=lambda: [
            pb.RunningRequest(id="mine~1-0", instance="decode-0", phase="decode", prompt_tokens=9, age=1.25)
        ]
    )
    moved: pb.Migration = field(
        default_factory=lambda: pb.Migration(
            id=1, request_id="mine~1-0", source="decode-0", destination="decode-1", cause="operator",
            outcome="committed", stages=2, bytes=4096, downtime=0.0123,
        )
    )  # fmt: skip
    asked: list[Any] = field(default_factory=list)

    def GetStatus(self, request: pb.StatusRequest, context: Any) -> pb.ClusterStatus:
        self.guard(context)
        ready = dict.fromkeys(self.targets, 0) if self.stuck else self.targets
        return pb.ClusterStatus(
            version="0.1.0",
            model=pb.Model(name="m", dtype="float32", max_length=64),
            pools=[pb.Pool(name=name, target=n, ready=ready[name]) for name, n in self.targets.items()],
            instances=[self.instance],
            gateways=[pb.Gateway(name="gateway-0", url="http://127.0.0.1:8000", pid=8)],
            controller_pid=9,
            uptime=62.0,
            ready=not self.stuck,
        )  # fmt: skip

    def Scale(self, request: pb.ScaleRequest, context: Any) -> pb.ScaleReply:
        self.guard(context)
        if request.HasField("replicas") and request.replicas == 0:
            context.abort(grpc.StatusCode.FAILED_PRECONDITION, "decode cannot be scaled to 0")
        previous = self.targets[request.pool]
        target = request.replicas if request.HasField("replicas") else previous
        if not request.dry_run:
            self.targets[request.pool] = target
        most = request.most or 64
        return pb.ScaleReply(previous=previous, target=target, least=request.least or 1, most=most)

    def GetRequests(self, request: pb.RequestsRequest, context: Any) -> pb.RequestList:
        self.guard(context)
        found = [one for one in self.requests if not request.id or one.id.startswith(f"{request.id}~")]
        return pb.RequestList(requests=found)

    def GetMigrations(self, request: pb.MigrationsRequest, context: Any) -> pb.MigrationList:
        self.guard(context)
        return pb.MigrationList(migrations=[self.moved])

    def GetTimelines(self, request: pb.TimelinesRequest, context: Any) -> pb.TimelineList:
        self.guard(context)
        return pb.TimelineList()

    def Migrate(self, request: pb.MigrateRequest, context: Any) -> pb.Migration:
        self.guard(context)
        if request.request != "mine":
            context.abort(grpc.StatusCode.NOT_FOUND, f"no request {request.request!r} runs")
        return (
            self.moved if request.wait else pb.Migration(request_id="mine~1-0", source="a", destination="b")
        )

    def Cordon(self, request: pb.CordonRequest, context: Any) -> pb.Instance:
        self.guard(context)
        self.instance.cordoned = request.on
        return self.instance

    def Drain(self, request: pb.DrainRequest, context: Any) -> pb.Instance:
        self.guard(context)
        self.asked.append(request)
        return pb.Instance(name=request.instance, state="draining")

    def SetRole(self, request: pb.RoleRequest, context: Any) -> pb.Instance:
        self.guard(context)
        self.asked.append(request)
        return pb.Instance(name=request.instance, state="draining", role="decode")

    def Restart(self, request: pb.RestartRequest, context: Any) -> pb.RestartReply:
        self.guard(context)
        return pb.RestartReply()

    def WatchEvents(self, request: pb.EventsRequest, context: Any) -> Iterator[pb.Event]:
        self.guard(context)
        for number in range(request.after + 1, 4):
            yield pb.Event(id=number, time=float(number), kind="spawned", subject="decode-0", reason="target")

    def guard(self, context: Any) -> None:
        if self.broken:
            context.abort(grpc.StatusCode.INTERNAL, "the controller is confused")
        if ("authorization", f"Bearer {TOKEN}") not in context.invocation_metadata():
            context.abort(grpc.StatusCode.UNAUTHENTICATED, "the control token is missing or wrong")


@pytest.fixture
def state_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "200")
    return tmp_path


@pytest.fixture
def controller(state_home: Path) -> Iterator[Controller]:
    """A controller whose address the local cluster's record holds."""
    served = Controller()
    server = grpc.server(ThreadPoolExecutor(2))
    control_pb2_grpc.add_ControlServicer_to_server(served, server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    write_state(LocalState(pid=1, cluster="x", scratch="/x", control=f"127.0.0.1:{port}", token=TOKEN))
    yield served
    server.stop(0).wait()


def run(*arguments: str) -> Result:
    return CliRunner().invoke(build(), list(arguments))


def items(result: Result) -> list[dict[str, Any]]:
    body = json.loads(result.stdout)
    assert list(body) == ["apiVersion", "kind", "items"]
    assert body["apiVersion"] == "tandem.dev/v1"
    return list(body["items"])


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


def test_a_live_screen_knows_rates_and_the_slo_attainment() -> None:
    def status(tokens: int) -> pb.ClusterStatus:
        lately = pb.Lately(requests=4, ttft=0.05, tpot=0.004, attainment=0.75)
        return pb.ClusterStatus(
            pools=[pb.Pool(name="decode", target=1, ready=1, autoscale=True)],
            instances=[
                pb.Instance(
                    name="decode-0", role="decode", state="ready",
                    status=pb.InstanceStatus(instance="decode-0", role="decode", output_tokens=tokens),
                )
            ],
            gateways=[pb.Gateway(name="gateway-0", url="http://x", lately=lately)],
            migrations=pb.MigrationTotals(
                counts=[
                    pb.MigrationCount(cause=why, outcome="committed", count=2) for why in ("drain", "role")
                ]
            ),
        )  # fmt: skip

    screen, console = Screen(), Console(width=200, record=True, file=io.StringIO())
    screen(status(100), now=10.0)
    console.print(screen(status(150), now=12.0))
    shown = console.export_text()
    rows = [line.split() for line in shown.splitlines()]
    assert ["decode", "1", "auto", "1", "0", "0", "-", "0", "0", "25"] in rows
    assert ["gateway-0", "-", "http://x", "0", "50.0", "ms", "4.0", "ms", "75", "%"] in rows
    assert "migrations: 4 committed" in shown


def test_status_as_json_has_every_field_and_whole_numbers(controller: Controller) -> None:
    (status,) = items(run("status", "-o", "json"))
    assert list(status) == [field.name for field in pb.ClusterStatus.DESCRIPTOR.fields]
    assert list(status["pools"][1]) == [
        "name", "target", "ready", "starting", "draining", "autoscale", "wish", "least", "most", "opinion",
        "bounded",
    ]  # fmt: skip
    assert status["instances"][0]["status"]["steps"] == 2**40
    assert status["instances"][0]["address"] is None
    assert (status["controller_pid"], status["gateways"][0]["pid"]) == (9, 8)


def test_scale_sets_the_target_and_says_from_where(controller: Controller) -> None:
    result = run("scale", "decode", "--replicas", "4", "--wait")
    assert (result.exit_code, result.stdout) == (0, "decode goes from 2 to 4\n")
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
    assert run("status", "--token", "wrong").exit_code == Exit.AUTH


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
