"""The chaos command at the gateway's door: certificates, keys, and what ends it before any fault."""

from __future__ import annotations

import json
import os
import platform
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from click.testing import Result
from typer.testing import CliRunner

from cluster import certificates
from cluster import control_pb2 as pb
from cluster.chaos import run as running
from cluster.cli import chaos
from cluster.cli.main import build
from cluster.local_state import LocalState, write_state

KEY = "sk-test"
SCENARIO = """
name: made-up
load: {requests: 8, concurrency: 4, choices: [1, 1], logprobs: 0}
faults:
  - {kind: kill_node, target: decode, at: 0s}
"""
EVENTS = (
    {"choices": [{"index": 0, "text": "a", "finish_reason": "length"}]},
    {"choices": [], "usage": {"completion_tokens": 1}},
)
STREAM = "".join(f"data: {json.dumps(event)}\n\n" for event in EVENTS) + "data: [DONE]\n\n"


class Gateway(BaseHTTPRequestHandler):
    """Answers one token to whoever shows the key."""

    server: Door

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["content-length"]))
        self.server.asked += 1
        if self.server.key and self.headers["authorization"] != f"Bearer {self.server.key}":
            self.answer(401, json.dumps({"error": {"message": "no such key"}}))
        else:
            self.answer(200, STREAM)

    def answer(self, status: int, body: str) -> None:
        self.send_response(status)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body.encode())

    def log_message(self, format: str, *args: object) -> None:
        pass


class Door(ThreadingHTTPServer):
    """`key` is asked for if there is one; `asked` counts requests."""

    daemon_threads = False
    key = ""
    asked = 0
    url = ""

    def handle_error(self, request: object, client_address: object) -> None:
        pass  # a client that does not believe the certificate


@contextmanager
def listening(tls: Path | None = None) -> Iterator[Door]:
    door = Door(("127.0.0.1", 0), Gateway)
    if tls is not None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(tls / "gateway.pem", tls / "gateway.key")
        door.socket = context.wrap_socket(door.socket, server_side=True, do_handshake_on_connect=False)
    door.url = f"{'http' if tls is None else 'https'}://127.0.0.1:{door.server_port}"
    thread = threading.Thread(target=door.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield door
    finally:
        door.shutdown()
        thread.join()
        door.server_close()


class Controller:
    """Knows one gateway, and this process as an instance, which no Ray daemon runs."""

    def __init__(self, url: str) -> None:
        here = {"node": platform.node(), "pid": os.getpid()}
        books = pb.InstanceStatus(blocks_total=4, blocks_free=4)
        self._status = pb.ClusterStatus(
            ready=True,
            controller_pid=os.getpid(),
            controller_node=platform.node(),
            gateways=[pb.Gateway(name="gateway-a", url=url, **here)],
            pools=[pb.Pool(name="decode", target=1, ready=1)],
            instances=[pb.Instance(name="decode-0", role="decode", state="ready", status=books, **here)],
        )

    def status(self) -> pb.ClusterStatus:
        return self._status

    def config(self) -> dict[str, object]:
        return {"engine": {"exact": False}}


Command = Callable[..., Result]


@pytest.fixture
def command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Command:
    """Runs `tandem chaos` of a scenario with one fault that cannot be carried out, against a gateway."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    monkeypatch.delenv("SSL_CERT_FILE", raising=False)
    monkeypatch.setattr(running, "REACH", 0.3)
    path = tmp_path / "made-up.yaml"
    path.write_text(SCENARIO)

    def run(url: str, *flags: str, certificate: Path | None = None, **environment: str) -> Result:
        @contextmanager
        def control(*_: object) -> Iterator[Controller]:
            yield Controller(url)

        monkeypatch.setattr(chaos, "control", control)
        held = str(certificate) if certificate else None
        write_state(LocalState(1, "c", str(tmp_path), certificate=held, gateways=[url], ready=True))
        return CliRunner().invoke(build(), ["chaos", "-f", str(path), *flags], env=environment)

    return run


def test_a_fault_that_cannot_be_carried_out_ends_with_1(command: Command) -> None:
    with listening() as door:
        result = command(door.url)
    assert result.exit_code == 1
    assert "0 carried out, 1 failed" in result.stdout
    assert "FAILED: kill_node decode: 1 of 1 could not be carried out: process" in result.stdout
    assert "passed" not in result.stdout


def test_the_certificate_of_the_local_clusters_gateway_is_believed(command: Command, tmp_path: Path) -> None:
    certificates.create(tmp_path, [])
    with listening(tmp_path) as door:
        result = command(door.url, certificate=tmp_path / "gateway.pem")
    assert "0 lost" in result.stdout
    assert door.asked >= 16


def test_a_gateway_that_is_not_believed_ends_the_run_with_the_cause(command: Command, tmp_path: Path) -> None:
    certificates.create(tmp_path, [])
    with listening(tmp_path) as door:
        result = command(door.url)
    assert result.exit_code == 4
    assert "no gateway could be reached in 0.3 s" in result.stderr
    assert "CERTIFICATE_VERIFY_FAILED" in result.stderr
    assert door.asked == 0


def test_a_gateway_that_does_not_listen_ends_the_run(command: Command) -> None:
    with listening() as door:
        pass
    result = command(door.url)
    assert result.exit_code == 4
    assert "no fault was begun" in result.stderr
    assert f"{door.url}: All connection attempts failed" in result.stderr


@pytest.mark.parametrize(
    ("flags", "environment"),
    [(["--api-key", KEY], {}), ([], {"OPENAI_API_KEY": KEY})],
    ids=["--api-key", "OPENAI_API_KEY"],
)
def test_a_key_is_shown(command: Command, flags: list[str], environment: dict[str, str]) -> None:
    with listening() as door:
        door.key = KEY
        result = command(door.url, *flags, **environment)
    assert "0 lost" in result.stdout


def test_without_a_key_it_ends_before_any_fault_and_says_so_once(command: Command) -> None:
    with listening() as door:
        door.key = KEY
        result = command(door.url)
    assert result.exit_code == 7
    assert result.stderr.count("401: no such key") == 1
    assert "--api-key or OPENAI_API_KEY" in result.stderr
    assert "kill_node" not in result.stderr
    assert door.asked <= 4
