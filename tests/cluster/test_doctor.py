"""tandem doctor: each usual cause is found, and named with its remedy; a sound machine has no failure."""

from __future__ import annotations

import http.server
import json
import resource
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from email.utils import formatdate
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from cluster import control_pb2 as pb
from cluster import installation, preflight
from cluster.cli import checks
from cluster.cli.checks import FAIL, OK, WARN, Finding, Surroundings
from cluster.cli.failures import Exit
from cluster.cli.main import build
from cluster.config import CacheConfig, Config, EngineConfig, GatewayConfig
from model.accelerators import Accelerators, accelerators

CONFIG = Config(gateway=GatewayConfig(port=0))


def found(
    check: Callable[[Surroundings], Iterator[Finding]],
    *,
    config: Config = CONFIG,
    status: pb.ClusterStatus | None = None,
    **environment: str,
) -> list[Finding]:
    return list(check(Surroundings(config, status, environment)))


def states(findings: list[Finding]) -> list[str]:
    for one in findings:
        assert one.text
        assert one.remedy or one.state == OK, one
    return [one.state for one in findings]


def test_a_package_that_shadows_ours_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    fault = "the name model leads to /x and not to tandem's /y: uninstall x"
    monkeypatch.setattr(installation, "faults", lambda: [fault])
    assert found(checks.packages) == [Finding("packages", FAIL, fault.partition(": ")[0], "uninstall x")]


@pytest.mark.parametrize(
    ("requirement", "met"),
    [
        ("ray>=2,<9999", True),
        ("ray[serve]>=2", True),
        ("ray>=9999", False),
        ("ray<2.1", False),
        ("no-such-thing>=1", False),
        ("no-such-thing>=1; extra == 'k8s'", True),
        ("ray!=1.0", True),
    ],
)
def test_versions_are_held_against_what_the_installation_asks_for(
    requirement: str, met: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checks, "requires", lambda name: [requirement])
    findings = found(checks.versions)
    assert states(findings) == [OK if met else FAIL]
    assert met or "pip install" in findings[0].remedy


def test_a_cluster_is_told_of_when_it_is_whole_old_not_ready_or_without_a_gateway() -> None:
    ours = installation.installed_version()
    gateway = pb.Gateway(name="gateway-0")
    assert states(found(checks.cluster)) == [WARN]
    assert states(
        found(checks.cluster, status=pb.ClusterStatus(version=ours, ready=True, gateways=[gateway]))
    ) == [OK]
    other = pb.ClusterStatus(version="0", ready=True, gateways=[gateway])
    assert states(found(checks.cluster, status=other)) == [WARN, OK]
    assert states(found(checks.cluster, status=pb.ClusterStatus(version=ours))) == [FAIL, FAIL]
    old = pb.ClusterStatus(
        version=ours, ready=True, gateways=[gateway], instances=[pb.Instance(name="decode-0", outdated="old")]
    )
    assert "decode-0" in found(checks.cluster, status=old)[0].text


def test_the_auth_mode_and_its_token_must_fit(tmp_path: Path) -> None:
    home = str(tmp_path)
    assert states(found(checks.authentication, RAY_AUTH_MODE="maybe")) == [FAIL]
    assert states(found(checks.authentication, RAY_AUTH_MODE="token", HOME=home)) == [FAIL]
    assert states(found(checks.authentication, RAY_AUTH_MODE="disabled", HOME=home)) == [OK]
    assert states(found(checks.authentication, RAY_AUTH_MODE="token", RAY_AUTH_TOKEN="x")) == [OK]
    (tmp_path / "token").write_text("x")
    assert states(
        found(checks.authentication, RAY_AUTH_MODE="token", RAY_AUTH_TOKEN_PATH=str(tmp_path / "token"))
    ) == [OK]


def test_a_taken_port_fails_but_not_if_the_cluster_itself_has_it() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        config = Config(gateway=GatewayConfig(port=port))
        assert states(found(checks.ports, config=config)) == [FAIL, OK]
        status = pb.ClusterStatus(gateways=[pb.Gateway(url=f"http://127.0.0.1:{port}")])
        assert states(found(checks.ports, config=config, status=status)) == [OK, OK]


def test_a_proxy_that_would_take_calls_to_this_machine_is_a_warning() -> None:
    assert states(found(checks.ports, http_proxy="http://proxy:3128")) == [OK, OK, WARN]
    assert states(found(checks.ports, http_proxy="http://proxy:3128", no_proxy="127.0.0.1")) == [OK, OK]


def test_too_little_memory_fails_before_a_start_but_not_beside_a_running_cluster(tmp_path: Path) -> None:
    config = Config(cache=CacheConfig(directory=str(tmp_path)), engine=EngineConfig(kv_memory=2**50))
    config = config.model_copy(update={"gateway": CONFIG.gateway})
    assert states(found(checks.memory, config=config)) == [FAIL]
    assert "engine.kv_memory" in found(checks.memory, config=config)[0].remedy
    assert states(found(checks.memory, config=config, status=pb.ClusterStatus())) == [OK]


@contextmanager
def gateway(ahead: float) -> Iterator[pb.ClusterStatus]:
    """A gateway whose clock is so many seconds ahead."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def date_time_string(self, timestamp: float | None = None) -> str:
            return formatdate(time.time() + ahead, usegmt=True)

        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()

        def log_message(self, format: str, *args: Any) -> None:
            pass

    server = http.server.HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        url = f"http://127.0.0.1:{server.server_port}"
        yield pb.ClusterStatus(gateways=[pb.Gateway(name="gateway-0", url=url)])
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.mark.parametrize(("ahead", "state"), [(0.0, OK), (90.0, WARN), (-90.0, WARN)])
def test_a_clock_that_is_off_is_a_warning(ahead: float, state: str) -> None:
    with gateway(ahead) as status:
        assert states(found(checks.clock, status=status)) == [state]


def test_a_gpu_that_torch_cannot_use_fails(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("model.accelerators.accelerators", lambda: Accelerators("2.13.0+cpu", "", (), ""))
    monkeypatch.setattr(preflight, "GPU", tmp_path)
    assert states(found(checks.devices))[0] == FAIL
    monkeypatch.setattr(preflight, "GPU", tmp_path / "none")
    assert states(found(checks.devices))[0] == OK
    cuda = Config(engine=EngineConfig(device="cuda"))
    assert states(found(checks.devices, config=cuda))[0] == FAIL


@pytest.mark.parametrize(("nccl", "state"), [("2.27.5", OK), ("", WARN)])
def test_gpus_are_told_with_their_nccl(nccl: str, state: str, monkeypatch: pytest.MonkeyPatch) -> None:
    there = Accelerators("2.13.0", "13.0", ("NVIDIA H100", "NVIDIA H100"), nccl)
    monkeypatch.setattr("model.accelerators.accelerators", lambda: there)
    gpu, other = found(checks.devices)
    assert gpu.text == "2 × NVIDIA H100, CUDA 13.0"
    assert states([gpu, other]) == [OK, state]


@pytest.mark.parametrize(("soft", "state"), [(64, WARN), (65536, OK)])
def test_too_few_open_files_are_a_warning(soft: int, state: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda what: (soft, soft))
    assert states(found(checks.limits)) == [state]


def test_a_check_that_breaks_is_a_finding_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken() -> list[str]:
        raise OSError("no such thing")

    monkeypatch.setattr(installation, "faults", broken)
    first = next(checks.examine(Surroundings(CONFIG, None, {})))
    assert (first.subject, first.state) == ("packages", WARN)


def test_the_verb_prints_all_findings_and_ends_with_1_if_one_failed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    sound = CliRunner().invoke(build(), ["doctor", "--set", "gateway.port=0", "-o", "json"])
    subjects = [one["subject"] for one in json.loads(sound.stdout)["items"]]
    assert {
        "packages",
        "versions",
        "cluster",
        "ray auth",
        "ports",
        "memory",
        "clock",
        "gpu",
        "limits",
    } <= set(subjects)
    assert "kubernetes" in subjects, "the checks of another package are found by their entry point"
    monkeypatch.setenv("RAY_AUTH_MODE", "nonsense")
    told = CliRunner().invoke(build(), ["doctor", "--set", "gateway.port=0"])
    assert told.exit_code == Exit.FAILED
    assert "set it to token or disabled" in told.stdout


def test_what_torch_finds_here_is_consistent() -> None:
    here = accelerators()
    assert here.torch
    assert bool(here.gpus) <= bool(here.cuda)
