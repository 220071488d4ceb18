"""A cluster with everything locked, looked at from outside: each port, without and with a secret."""

from __future__ import annotations

import json
import os
import signal
import socket
import ssl
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import httpx
import psutil
import pytest
from starlette.routing import Route

from cluster import certificates
from cluster.admin import API, build_admin
from cluster.admin_auth import COOKIE, Gate
from cluster.config_security import ClusterTls
from cluster.console.pages import ACTIONS as CONSOLE_ACTIONS
from cluster.console.pages import mount_console
from cluster.control_client import ControlClient
from cluster.keys import draw, hashed
from cluster.local_ray import processes
from cluster.tls import Tls, cluster_tls
from engine.errors import HandshakeRefused, InvalidKey, TransferFailed, Unreachable
from migration import handshake
from migration.handshake import Identity
from migration.tcp import TcpTransport
from tests.cluster.test_admin import ACTIONS, READS
from tests.cluster.test_up import START, Up, make_home, spawn_up
from tests.cluster.tiny_model import make_tiny_model

CONTROL = "the-control-token-of-a-locked-cluster"
ADMIN = "the-admin-token-of-a-locked-cluster"
METRICS = "the-metrics-token-of-a-locked-cluster"
KEY = draw()
SECRETS = (CONTROL, ADMIN, METRICS, KEY)

RAY_METHODS = (
    "ray.rpc.NodeInfoGcsService/GetAllNodeInfo",
    "ray.rpc.ActorInfoGcsService/GetAllActorInfo",
    "ray.rpc.InternalKVGcsService/InternalKVGet",
    "ray.rpc.CoreWorkerService/PushTask",
    "ray.rpc.CoreWorkerService/GetCoreWorkerStats",
    "ray.rpc.NodeManagerService/GetNodeStats",
    "ray.rpc.NodeManagerService/RequestWorkerLease",
    "ray.rpc.ObjectManagerService/FreeObjects",
    "ray.rpc.ReporterService/GetTraceback",
    "ray.serve.ASGIService/HandleRequest",
)
CLOSED = {"UNAUTHENTICATED", "UNIMPLEMENTED", "UNAVAILABLE"}


@dataclass
class Locked:
    """A running cluster, its certificates, and a client for operators."""

    up: Up
    folder: Path
    state: dict[str, Any]

    @property
    def tls(self) -> Tls:
        found = cluster_tls(ClusterTls.model_validate(self.state["tls"]))
        assert found is not None
        return found

    def control(self, *, token: str | None = CONTROL, tls: Tls | None = None) -> ControlClient:
        return ControlClient(self.state["control"], token, timeout=10.0, tls=tls or self.tls)

    def family(self) -> list[psutil.Process]:
        """Every process of the cluster, `tandem up` itself included."""
        return [*processes(self.state["cluster"]), psutil.Process(self.up.process.pid)]

    def listening(self) -> dict[int, tuple[str, str]]:
        """Port → address and name of the process."""
        found = {}
        for process in self.family():
            for one in process.net_connections("inet"):
                if one.status == psutil.CONN_LISTEN:
                    found[one.laddr.port] = one.laddr.ip.removeprefix("::ffff:"), process.name()
        return found

    def ours(self) -> dict[str, list[int]]:
        """The ports that tandem opens."""
        with self.control() as client:
            status = client.status()
        return {
            "control": [port_of(self.state["control"])],
            "admin": [port_of(self.state["admin"])],
            "gateway": sorted({port_of(one.url) for one in status.gateways}),
            "push": [port_of(one.home) for one in status.gateways],
            "transfer": [port_of(one.address.tcp) for one in status.instances if one.address.tcp],
        }


def port_of(address: str) -> int:
    return int(address.rpartition(":")[2])


@pytest.fixture(scope="module")
def locked(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Locked]:
    """`tandem up` of a tiny model with keys, tokens and certificates on every port."""
    home = make_home(tmp_path_factory.mktemp("locked"))
    tls = home.folder / "tls"
    certificates.create(tls, [])
    model = make_tiny_model(home.folder / "tiny")
    (home.folder / "keys").write_text(hashed(KEY, "acme") + "\n")
    cluster = {name: f"{tls}/cluster.{suffix}" for name, suffix in (("certificate", "pem"), ("key", "key"))}
    gateway = {name: f"{tls}/gateway.{suffix}" for name, suffix in (("certificate", "pem"), ("key", "key"))}
    settings = {
        "model": {"path": str(model), "name": "tiny"},
        "pools": {"prefill": {"replicas": 1}, "decode": {"replicas": 1}},
        "engine": {"kv_memory": "4Mi", "token_budget": 64, "threads": 1},
        "gateway": {"replicas": 1, "key_file": str(home.folder / "keys"), "metrics_token": METRICS},
        "control": {"token": CONTROL},
        "admin": {"token": ADMIN},
        "transfer": {"transport": "tcp"},
        "log": {"level": "debug"},
        "security": {
            "cluster_tls": {**cluster, "authority": f"{tls}/authority.pem"},
            "gateway_tls": gateway,
            "admin_tls": gateway,
            "tenants": {"concurrent": {"acme": 8}},
        },
    }
    (home.folder / "tandem.yaml").write_text(json.dumps(settings))
    (home.folder / "tandem.yaml").chmod(0o600)
    home.environment["OPENAI_API_KEY"] = KEY
    running = spawn_up(home, "-f", "tandem.yaml")
    try:
        running.wait_for("Serving until Ctrl-C.", START)
        state = home.state()
        assert state is not None
        yield Locked(running, home.folder, state)
        assert running.end(signal.SIGINT) == 130
    finally:
        if running.process.poll() is None:
            running.end(signal.SIGTERM)


def trusting(locked: Locked) -> ssl.SSLContext:
    return ssl.create_default_context(cafile=str(locked.folder / "tls" / "authority.pem"))


def answers(
    url: str, method: str, path: str, context: ssl.SSLContext, key: str | None, body: object = None
) -> int:
    headers = {} if key is None else {"authorization": f"Bearer {key}"}
    with httpx.Client(verify=context, trust_env=False, timeout=20) as client:
        return client.request(method, f"{url}{path}", headers=headers, json=body).status_code


# tandem's own ports


def test_a_request_passes_both_pools_and_its_answer_is_shown(locked: Locked) -> None:
    assert any("prefilled by prefill-" in line for line in locked.up.lines)
    assert any(line.startswith("tiny is served at https://127.0.0.1:") for line in locked.up.lines)


def test_every_port_that_tandem_opens_listens_on_loopback(locked: Locked) -> None:
    listening, ours = locked.listening(), locked.ours()
    assert {name for name, ports in ours.items() if ports} == set(ours)
    for name, ports in ours.items():
        for port in ports:
            assert listening[port][0] == "127.0.0.1", name


def test_no_port_of_tandems_speaks_without_tls(locked: Locked) -> None:
    for ports in locked.ours().values():
        for port in ports:
            with socket.create_connection(("127.0.0.1", port), 5) as plain:
                plain.settimeout(15)
                plain.sendall(b"GET /health HTTP/1.1\r\nhost: t\r\n\r\n")
                try:
                    answer = plain.recv(4096)
                except (ConnectionError, TimeoutError):
                    answer = b""
                assert b"200" not in answer and b"tandem" not in answer


def test_cluster_ports_refuse_the_handshake_without_a_certificate(locked: Locked) -> None:
    ours = locked.ours()
    for port in ours["control"] + ours["push"] + ours["transfer"]:
        assert greeted(port, trusting(locked)) is False
        assert greeted(port, locked.tls.context(server=False)) is True


def greeted(port: int, context: ssl.SSLContext) -> bool:
    """Whether a TLS handshake is completed on both sides: in TLS 1.3 a refusal comes with the first read."""
    context.set_alpn_protocols(["h2"])
    try:
        with (
            socket.create_connection(("127.0.0.1", port), 5) as plain,
            context.wrap_socket(plain, server_hostname="tandem") as secured,
        ):
            secured.settimeout(1.0)
            # gRPC sends its settings, the transfer port waits for a hello.
            return bool(secured.recv(1))
    except TimeoutError:
        return True
    except OSError:
        return False


@pytest.mark.parametrize("token", [None, "", "wrong", CONTROL[:-1]])
def test_control_and_push_are_unauthenticated_with_a_certificate_alone(
    locked: Locked, token: str | None
) -> None:
    with locked.control(token=token) as client, pytest.raises(InvalidKey):
        client.status()
    for port in locked.ours()["push"]:
        for method in ("Claim", "Push"):
            code = called(port, f"tandem.control.v1.Home/{method}", locked.tls, token)
            assert code == "UNAUTHENTICATED", method


def test_an_unknown_authoritys_certificate_is_refused_at_control(locked: Locked, tmp_path: Path) -> None:
    certificates.create(tmp_path, [])
    foreign = Tls(
        str(tmp_path / "cluster.pem"),
        str(tmp_path / "cluster.key"),
        str(locked.folder / "tls" / "authority.pem"),
        setting="test",
        name="tandem",
    )
    with locked.control(tls=foreign) as client, pytest.raises(Unreachable):
        client.status()


def test_transfer_refuses_who_does_not_know_the_secret(locked: Locked) -> None:
    with locked.control() as client:
        instances = [one for one in client.status().instances if one.address.tcp]
    for one in instances:
        channel = TcpTransport(5.0, locked.tls).connect(one.address.tcp, 5.0)
        stranger = Identity("stranger", "any layout", 16, 1024, "any", b"not the secret")
        with pytest.raises((HandshakeRefused, TransferFailed), match=r"secret|closed|gone"):
            handshake.call(channel, stranger, one.name, 5.0)
        channel.close()


def test_the_gateway_gives_everything_but_health_to_keys_only(locked: Locked) -> None:
    url, context = locked.state["gateways"][0], trusting(locked)
    with httpx.Client(verify=context, trust_env=False) as client:
        document = client.get(f"{url}/openapi.json", headers={"authorization": f"Bearer {KEY}"}).json()
    routes = [(method.upper(), path) for path, methods in document["paths"].items() for method in methods]
    assert len(routes) > 10
    opened = {
        path
        for method, path in [*routes, ("GET", "/"), ("GET", "/docs"), ("GET", "/admin/v1/status")]
        for key in (None, "wrong", CONTROL, ADMIN)
        if answers(url, method, path.replace("{model}", "tiny"), context, key) != 401
    }
    assert opened == {"/health", "/ready", "/ping"}
    assert answers(url, "GET", "/v1/models", context, KEY) == 200
    assert answers(url, "GET", "/metrics", context, METRICS) == 200
    assert answers(url, "GET", "/v1/models", context, METRICS) == 401


def admin_routes() -> list[tuple[str, str]]:
    """Method and path of all that the admin port serves but the console's files, with names filled in."""
    gate = Gate(ADMIN, 60.0)
    app = build_admin(None, gate)  # type: ignore[arg-type]
    mount_console(app, gate, ADMIN, secure=True)
    found = [
        (method, route.path.replace("{name}", "decode-0"))
        for route in app.routes
        if isinstance(route, Route)
        for method in sorted(route.methods or ())
    ]
    acts = [(kind, action) for kind, actions in CONSOLE_ACTIONS.items() for action in sorted(actions)]
    found.remove(("POST", "/console/{kind}/decode-0/{action}"))
    return [*found, *(("POST", f"/console/{kind}/decode-0/{action}") for kind, action in acts)]


def test_the_admin_port_gives_everything_but_health_to_its_token_only(locked: Locked) -> None:
    url, context = locked.state["admin"], trusting(locked)
    served = [(method, path) for method, path in admin_routes() if path.startswith(f"{API}/")]
    known = {path.partition("/")[0] for path in [*READS, *(path for path, _ in ACTIONS)]}
    assert {path.split("/")[3] for _, path in served} == known
    for key in (None, "wrong", CONTROL, KEY):
        for method, path in served:
            assert answers(url, method, path, context, key) == 401, path
        for path, body in ACTIONS:
            assert answers(url, "POST", f"{API}/{path}", context, key, body) == 401, path
    for path in READS:
        assert answers(url, "GET", f"{API}/{path}", context, ADMIN) == 200, path
    assert answers(url, "GET", "/health", context, None) == 200


def test_the_console_shows_and_does_nothing_without_a_session(locked: Locked) -> None:
    url, context = locked.state["admin"], trusting(locked)
    pages = [one for one in admin_routes() if one[1] == "/" or one[1].startswith("/console")]
    assert len(pages) > 15
    with (
        locked.control() as control,
        httpx.Client(verify=context, trust_env=False, follow_redirects=True, timeout=20) as client,
    ):
        before = control.status()
        for method, path in pages:
            for headers in ({}, {"authorization": f"Bearer {ADMIN}"}, {"cookie": f"{COOKIE}=9999999999.0"}):
                answer = client.request(method, f"{url}{path}", headers=headers)
                assert answer.status_code == 401, (method, path)
                assert not [one.name for one in before.instances if f">{one.name}<" in answer.text], path
        after = control.status()
    assert [(one.name, one.target) for one in before.pools] == [(one.name, one.target) for one in after.pools]
    assert [(one.role, one.cordoned) for one in before.instances] == [
        (one.role, one.cordoned) for one in after.instances
    ]


# Ray's own ports


def called(port: int, method: str, tls: Tls | None, token: str | None) -> str:
    """The status of a call with an empty message."""
    if tls is None:
        channel = grpc.insecure_channel(f"127.0.0.1:{port}", options=[("grpc.enable_http_proxy", 0)])
    else:
        channel = grpc.secure_channel(f"127.0.0.1:{port}", tls.channel_credentials(), tls.channel_options)
    metadata = [] if token is None else [("authorization", f"Bearer {token}")]
    try:
        channel.unary_unary(f"/{method}")(b"", timeout=10, metadata=metadata)
    except grpc.RpcError as error:
        return str(error.code().name)
    finally:
        channel.close()
    return "OK"


def test_rays_ports_are_on_loopback_but_for_serves_and_answer_nobody_without_a_token(locked: Locked) -> None:
    """What is open all the same is listed in docs/security.md."""
    ours = {port for ports in locked.ours().values() for port in ports}
    rays = {port: found for port, found in locked.listening().items() if port not in ours}
    assert len(rays) >= 8
    asked_for_a_token = 0
    for port, (address, name) in rays.items():
        codes = {method: called(port, method, None, None) for method in RAY_METHODS}
        assert set(codes.values()) <= CLOSED, (name, codes)
        asked_for_a_token += "UNAUTHENTICATED" in codes.values()
        if address != "127.0.0.1":
            # Serve binds the ports between replicas to all interfaces, whatever it is told.
            assert codes["ray.serve.ASGIService/HandleRequest"] == "UNAUTHENTICATED", (name, address, codes)
            assert name.startswith("ray::ServeReplica")
    assert asked_for_a_token >= 8


def test_rays_http_ports_ask_for_a_token_but_for_its_metrics(locked: Locked) -> None:
    ours = {port for ports in locked.ours().values() for port in ports}
    for port, (_, name) in locked.listening().items():
        if port in ours:
            continue
        for method, path in (("GET", "/"), ("POST", "/get_or_create_runtime_env"), ("GET", "/logs")):
            try:
                answer = httpx.request(method, f"http://127.0.0.1:{port}{path}", timeout=10, trust_env=False)
            except httpx.TransportError:
                continue
            if answer.status_code == 200:
                assert answer.text.startswith("# HELP"), (name, path, answer.text[:200])
            else:
                assert answer.status_code in (401, 403, 404, 405, 501), (name, path)


# Secrets at rest


def test_no_secret_is_in_an_argument_of_a_process(locked: Locked) -> None:
    for process in locked.family():
        line = " ".join(process.cmdline())
        assert not [secret for secret in SECRETS if secret in line], process.name()


def test_no_secret_is_in_a_log_or_a_file_that_others_can_read(locked: Locked) -> None:
    """In Ray's folder, the state folder, the cache, and what was printed."""
    printed = "\n".join(locked.up.lines) + locked.up.log()
    assert not [secret for secret in SECRETS if secret in printed]
    for root in (Path(locked.state["scratch"]), locked.folder / "state", locked.folder / "cache"):
        for path in files_below(root):
            data = path.read_bytes()
            found = [secret for secret in SECRETS if secret.encode() in data]
            if path.name == "local.json":
                assert found == [CONTROL, ADMIN]
                assert path.stat().st_mode & 0o777 == 0o600
            else:
                assert found == [], path


def test_the_folders_of_state_are_their_owners_alone(locked: Locked) -> None:
    for folder in (Path(locked.state["scratch"]), locked.folder / "state" / "tandem"):
        assert folder.stat().st_mode & 0o077 == 0, folder


def files_below(root: Path) -> Iterator[Path]:
    for folder, _, names in os.walk(root):
        for name in names:
            path = Path(folder) / name
            if path.is_file() and not path.is_symlink():
                yield path


def test_the_commands_of_operators_work_on_it(locked: Locked) -> None:
    (status,) = locked.up.home.items("status")
    assert status["ready"] is True
    done = locked.up.home.run("chat", "Hello", "--max-tokens", "4")
    assert done.returncode == 0, done.stderr
