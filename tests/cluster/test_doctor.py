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
from cluster.cli.connect import HINT, TOKEN_HINT
from cluster.cli.failures import Exit, Failure
from cluster.cli.main import build
from cluster.config import CacheConfig, Config, EngineConfig, GatewayConfig
from cluster.local_state import LocalState, only_one, read_state, write_state
from engine.errors import SetupError
from model.accelerators import Accelerators, accelerators
from tests.cluster.cli_controller import Controller, items, run

CONFIG = Config(gateway=GatewayConfig(port=0))


def found(
    check: Callable[[Surroundings], Iterator[Finding]],
    *,
    config: Config = CONFIG,
    status: pb.ClusterStatus | None = None,
    **environment: str,
) -> list[Finding]:
    return list(check(Surroundings(config, status, environment)))


@contextmanager
def taken() -> Iterator[int]:
    """A port on which something listens."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


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


@pytest.mark.parametrize(
    ("failed", "state"),
    [
        (Failure(Exit.NOT_FOUND, "not_found", "no local cluster is running", HINT), WARN),
        (Failure(Exit.UNREACHABLE, "unreachable", "nothing answers at a:1"), WARN),
        (Failure(Exit.UNREACHABLE, "unreachable", "the controller is being started again", "wait"), FAIL),
        (Failure(Exit.UNREACHABLE, "unreachable", "the handshake failed", "leave --tls out"), FAIL),
        (Failure(Exit.AUTH, "invalid_key", "the control token is missing or wrong", TOKEN_HINT), FAIL),
        (Failure(Exit.FAILED, "internal", "the controller is confused"), FAIL),
    ],
    ids=lambda given: given.message if isinstance(given, Failure) else given,
)
def test_a_cluster_that_does_not_say_how_it_is_is_told_of_with_its_reason(
    failed: Failure, state: str
) -> None:
    (finding,) = checks.cluster(Surroundings(CONFIG, None, {}, failure=failed))
    assert states([finding]) == [state]
    assert failed.message in finding.text
    assert finding.text.startswith("none answers") == (state == WARN)
    assert failed.hint in finding.remedy


def test_the_verb_names_a_wrong_token_as_other_verbs_do(controller: Controller) -> None:
    told = run("--token", "wrong", "doctor", "--set", "gateway.port=0", "-o", "json")
    (finding,) = [one for one in items(told) if one["subject"] == "cluster"]
    assert finding == {
        "subject": "cluster", "state": FAIL, "text": "the control token is missing or wrong",
        "remedy": TOKEN_HINT,
    }  # fmt: skip
    assert told.exit_code == Exit.FAILED
    sound = run("doctor", "--set", "gateway.port=0", "-o", "json")
    assert "none answers" not in sound.stdout


def test_the_verb_knows_the_control_port_of_the_cluster_that_it_asked(controller: Controller) -> None:
    state = read_state()
    assert state is not None and state.control is not None
    port = state.control.rpartition(":")[2]
    told = run("doctor", "--set", "gateway.port=0", "--set", f"control.port={port}", "-o", "json")
    texts = [one["text"] for one in items(told) if one["subject"] == "ports"]
    assert f"127.0.0.1:{port} is this cluster's" in texts


def test_a_ray_that_is_named_must_accept_connections(state_home: Path) -> None:
    with taken() as port:
        there = f"127.0.0.1:{port}"
        assert states(found(checks.ray, RAY_ADDRESS=there)) == [OK]
        assert states(found(checks.ray, RAY_ADDRESS=f"ray://{there}")) == [OK]
    (finding,) = found(checks.ray, RAY_ADDRESS=there)
    assert states([finding]) == [FAIL]
    assert "RAY_ADDRESS" in finding.remedy
    for none in ("", "auto", "local"):
        assert states(found(checks.ray, RAY_ADDRESS=none)) == [OK]


def test_the_ray_of_the_local_cluster_must_accept_connections(state_home: Path, tmp_path: Path) -> None:
    session = tmp_path / "scratch/r/session_latest"
    session.mkdir(parents=True)
    write_state(LocalState(pid=1, cluster="x", scratch=str(tmp_path / "scratch")))
    with taken() as port, only_one():
        (session / "gcs_server_port_ab").write_text(f"{port}\n")
        (finding,) = found(checks.ray)
        assert (finding.state, str(port) in finding.text) == (OK, True)
    with only_one():
        assert states(found(checks.ray)) == [FAIL]
    assert states(found(checks.ray)) == [OK], "that of a cluster which has ended is not missed"


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
    with taken() as port:
        config = Config(gateway=GatewayConfig(port=port))
        assert states(found(checks.ports, config=config)) == [FAIL, OK, OK]
        status = pb.ClusterStatus(gateways=[pb.Gateway(url=f"http://127.0.0.1:{port}")])
        assert states(found(checks.ports, config=config, status=status)) == [OK, OK, OK]


def test_every_port_that_up_looks_at_is_looked_at() -> None:
    with taken() as port:
        for section in ("gateway", "control", "admin"):
            config = Config.model_validate({"gateway": {"port": 0}} | {section: {"port": port}})
            (bad,) = [one for one in found(checks.ports, config=config) if one.state == FAIL]
            assert bad.remedy == f"set another {section}.port"
            with pytest.raises(SetupError, match=f"{section}.port"):
                preflight.check_ports(config)


@pytest.mark.parametrize("section", ["control", "admin"])
def test_a_port_of_the_cluster_that_answers_is_its_own(section: str) -> None:
    with taken() as port:
        config = Config.model_validate({"gateway": {"port": 0}, section: {"port": port}})

        def findings(host: str) -> list[str]:
            at = f"{host}:{port}"
            status = pb.ClusterStatus(admin=f"http://{at}" if section == "admin" else "")
            control = at if section == "control" else f"{host}:1"
            return states(list(checks.ports(Surroundings(config, status, {}, control=control))))

        assert FAIL not in findings("127.0.0.1")
        assert FAIL in findings("192.0.2.1"), "a cluster elsewhere has no port of this machine"


def test_a_proxy_that_would_take_calls_to_this_machine_is_a_warning() -> None:
    assert states(found(checks.ports, http_proxy="http://proxy:3128")) == [OK, OK, OK, WARN]
    assert states(found(checks.ports, http_proxy="http://proxy:3128", no_proxy="127.0.0.1")) == [OK, OK, OK]


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
        "ray",
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
