"""`tandem k8s`: rendering, applying with the kubectl of the PATH, and the last minutes of a pod."""

from __future__ import annotations

import json
import os
import platform
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
import yaml
from click.testing import Result
from typer.testing import CliRunner

from cluster import control_pb2 as pb
from cluster.config import Config
from engine.errors import Unreachable
from k8s import leave
from k8s.render import files, objects
from tests.k8s.trees import command_line


def run(*arguments: str) -> Result:
    return CliRunner().invoke(command_line(), ["k8s", *arguments])


def test_render_prints_every_object(tmp_path: Path) -> None:
    done = run("render")
    assert done.exit_code == 0
    assert list(yaml.safe_load_all(done.stdout)) == objects(Config())


def test_render_writes_the_tree(tmp_path: Path) -> None:
    assert run("render", "-o", str(tmp_path)).exit_code == 0
    written = {str(p.relative_to(tmp_path)): p.read_text() for p in tmp_path.rglob("*") if p.is_file()}
    assert written == files(Config())


def test_render_takes_the_file_and_the_settings(tmp_path: Path) -> None:
    path = tmp_path / "tandem.yaml"
    path.write_text("kubernetes:\n  name: llm\n")
    out = run("render", "-f", str(path), "--set", "pools.decode.replicas=5").stdout
    service = next(each for each in yaml.safe_load_all(out) if each["kind"] == "RayService")
    groups = {g["groupName"]: g["replicas"] for g in service["spec"]["rayClusterConfig"]["workerGroupSpecs"]}
    assert (service["metadata"]["name"], groups["decode"]) == ("llm", 5)


def test_a_wrong_setting_ends_with_2(tmp_path: Path) -> None:
    assert run("render", "--set", "kubernetes.name=Big").exit_code == 2


def test_a_secret_in_the_config_is_named_and_left_out() -> None:
    done = run("render", "--set", "control.token=hush")
    assert "control.token is not rendered" in done.stderr and "hush" not in done.stdout


@pytest.fixture
def kubectl(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A kubectl that only writes down what it was asked."""
    log, program = tmp_path / "log", tmp_path / "kubectl"
    program.write_text(f'#!/bin/sh\necho "$@" >> {log}\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    return log


def test_apply_sends_the_crd_first_and_waits_for_it(kubectl: Path) -> None:
    assert run("apply", "--overlay", "gpu").exit_code == 0
    lines = kubectl.read_text().splitlines()
    assert [line.split()[0] for line in lines] == ["apply", "wait", "apply"]
    assert lines[0].endswith("/crds/pools.tandem.dev.yaml") and lines[2].endswith("/overlays/gpu")
    assert "--server-side" in lines[0] and "--server-side" in lines[2]


def test_a_dry_run_changes_nothing(kubectl: Path) -> None:
    assert run("apply", "--dry-run").exit_code == 0
    assert all("--dry-run=server" in line for line in kubectl.read_text().splitlines())


def test_apply_without_kubectl_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nonexistent")
    done = run("apply")
    assert done.exit_code == 2 and "no kubectl" in done.stderr


def test_the_operator_asks_for_an_address() -> None:
    done = run("operator")
    assert done.exit_code == 2 and "--address" in done.stderr


class Answering:
    """Stands in for the control client in a pod's last minutes."""

    status_: pb.ClusterStatus | None

    def __init__(self, address: str, token: str | None, *, timeout: float, tls: object = None) -> None: ...

    def __enter__(self) -> Answering:
        return self

    def __exit__(self, *_: object) -> None: ...

    def status(self) -> pb.ClusterStatus:
        if self.status_ is None:
            raise Unreachable("nothing answers")
        return self.status_


@contextmanager
def process(program: str) -> Iterator[subprocess.Popen[str]]:
    """A process that says when it is set up."""
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True) as started:
        assert started.stdout is not None and started.stdout.readline() == "up\n"
        try:
            yield started
        finally:
            started.kill()


SLEEPER = "import signal, time\nsignal.signal(signal.SIGTERM, {})\nprint('up', flush=True)\ntime.sleep(60)"
DRAINS = SLEEPER.format("lambda *_: exit(7)")
STAYS = SLEEPER.format("signal.SIG_IGN")


def leaving(monkeypatch: pytest.MonkeyPatch, status: pb.ClusterStatus | None, deadline: float) -> list[str]:
    monkeypatch.setattr(Answering, "status_", status, raising=False)
    monkeypatch.setattr(leave, "ControlClient", Answering)
    monkeypatch.setattr(leave, "POLL", 0.02)
    said: list[str] = []
    leave.leave_pool("anywhere:1", None, deadline, said.append)
    return said


def one(pid: int, node: str) -> pb.ClusterStatus:
    return pb.ClusterStatus(instances=[pb.Instance(name="decode-0", pid=pid, node=node)])


def test_instances_of_this_pod_are_told_to_end_and_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    with process(DRAINS) as started:
        said = leaving(monkeypatch, one(started.pid, platform.node()), 30)
        assert (said, started.wait(10)) == (["decode-0 drains", "decode-0 has ended"], 7)


def test_instances_of_other_pods_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    with process(DRAINS) as started:
        assert leaving(monkeypatch, one(started.pid, "another-pod"), 1) == []
        assert started.poll() is None


def test_the_deadline_ends_the_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    with process(STAYS) as started:
        said = leaving(monkeypatch, one(started.pid, platform.node()), 0.1)
        assert said[-1] == "the deadline is over: decode-0 is still there"


def test_a_controller_that_is_gone_does_not_stop_a_pod_from_leaving(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "does not say" in leaving(monkeypatch, None, 1)[0]


def test_an_instance_that_has_ended_already_is_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    with process(DRAINS) as started:
        started.send_signal(signal.SIGKILL)
        started.wait(10)
    assert leaving(monkeypatch, one(started.pid, platform.node()), 1) == ["decode-0 has ended"]


@contextmanager
def gateway(loads: list[int]) -> Iterator[str]:
    """A gateway whose load falls from answer to answer."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            data = json.dumps({"server_load": loads.pop(0) if len(loads) > 1 else loads[0]}).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, format: str, *args: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}"
        finally:
            server.shutdown()
            thread.join()


@pytest.mark.parametrize(
    ("loads", "last"),
    [([2, 1, 0], "no request is under way"), ([1], "the deadline is over: requests under way are lost")],
)
def test_a_gateway_is_waited_for_until_it_is_idle(
    monkeypatch: pytest.MonkeyPatch, loads: list[int], last: str
) -> None:
    monkeypatch.setattr(leave, "SETTLE", 0.0)
    monkeypatch.setattr(leave, "POLL", 0.02)
    said: list[str] = []
    with gateway(loads) as url:
        leave.leave_gateway(url, "key", 1.0, said.append)
    assert said == [last]
