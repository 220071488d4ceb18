"""Verbs and the local cluster: they believe its certificate, and say why it does not answer."""

from __future__ import annotations

import json
import os
import shlex
import socket
import subprocess
import sys
from collections.abc import Iterator
from email.utils import formatdate
from pathlib import Path

import httpx
import pytest
from typer.testing import CliRunner, Result

from cluster import certificates
from cluster import control_pb2 as pb
from cluster.certificates import authority_of
from cluster.cli import checks
from cluster.cli.checks import OK, WARN, Surroundings
from cluster.cli.failures import SHOW_HINT, Exit, tls_hint
from cluster.cli.greeting import Believe, curl, snippet
from cluster.cli.main import build
from cluster.config import Config
from cluster.config_security import ClusterTls, HttpTls, SecurityConfig
from cluster.local_state import LocalState, only_one, write_state
from cluster.tls import Tls
from tests.cluster.local_cluster import served_in_a_thread

ENDED = "error: no local cluster is running (the last ended unexpectedly)"
AWAY = "127.0.0.1:1"
BENCH = ("bench", "serve", "batch=1", "--prompt", "4", "--answer", "2", "--repeat", "1")


@pytest.fixture(autouse=True)
def _home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.setenv("NO_COLOR", "1")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("certificates")
    certificates.create(made, [])
    return made


@pytest.fixture(scope="module")
def secured(folder: Path) -> Iterator[str]:
    """A gateway that shows a certificate of no authority that the system knows."""
    files = str(folder / "gateway.pem"), str(folder / "gateway.key")
    shown = Tls(*files, None, setting="security.gateway_tls")
    with served_in_a_thread(blocks=512, max_length=400, tls=shown) as url:
        yield url


@pytest.fixture(scope="module")
def asking(folder: Path) -> Iterator[str]:
    """A gateway that wants to be shown a certificate."""
    files = str(folder / "gateway.pem"), str(folder / "gateway.key"), str(folder / "authority.pem")
    with served_in_a_thread(
        blocks=512, max_length=400, tls=Tls(*files, setting="security.gateway_tls")
    ) as url:
        yield url


def run(*arguments: str) -> Result:
    return CliRunner().invoke(build(), list(arguments))


def first(verb: list[str]) -> str:
    return verb[0]


def record(**fields: object) -> None:
    write_state(LocalState(pid=os.getpid(), cluster="c", scratch="/", ready=True, **fields))  # type: ignore[arg-type]


def config(folder: Path, *, authority: bool = False) -> Config:
    gateway, cluster = str(folder / "gateway"), str(folder / "cluster")
    issuer = str(folder / "authority.pem")
    shown = HttpTls(
        certificate=f"{gateway}.pem", key=f"{gateway}.key", authority=issuer if authority else None
    )
    inside = ClusterTls(certificate=f"{cluster}.pem", key=f"{cluster}.key", authority=issuer)
    return Config(security=SecurityConfig(gateway_tls=shown, cluster_tls=inside))


# Certificates


def test_bench_and_chat_believe_the_certificate_of_the_record(secured: str, folder: Path) -> None:
    record(gateways=[secured], certificate=str(folder / "gateway.pem"))
    for where in ((), ("--url", secured)):
        measured = run(*BENCH, *where, "-o", "json")
        assert measured.exit_code == 0, measured.output
        assert json.loads(measured.stdout)["items"][0]["results"][0]["failed"] == 0
    answered = run("chat", "hi", "--max-tokens", "2")
    assert answered.exit_code == 0, answered.output


def test_bench_of_another_server_honours_ssl_cert_file(
    secured: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    refused = run(*BENCH, "--url", secured)
    assert refused.exit_code == Exit.UNREACHABLE
    assert "CERTIFICATE_VERIFY_FAILED" in refused.stderr
    assert "hint: name the authority that signed its certificate: SSL_CERT_FILE=FILE" in refused.stderr
    monkeypatch.setenv("SSL_CERT_FILE", str(folder / "authority.pem"))
    measured = run(*BENCH, "--url", secured)
    assert measured.exit_code == 0, measured.output


@pytest.mark.parametrize(
    ("message", "hint"),
    [
        ("https://a does not answer: ReadError", SHOW_HINT),
        ("https://a does not answer: [Errno 104] Connection reset by peer", SHOW_HINT),
        ("http://a does not answer: ReadError", ""),
        ("https://a does not answer: ConnectError", ""),
    ],
)
def test_what_a_server_leaves_that_wants_a_certificate_is_known_however_it_goes(
    message: str, hint: str
) -> None:
    assert tls_hint(message) == hint


@pytest.mark.parametrize("recorded", [True, False], ids=["local", "remote"])
def test_a_gateway_that_asks_for_a_certificate_is_shown_that_of_the_folder(
    asking: str, folder: Path, recorded: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if recorded:
        record(gateways=[asking], certificate=str(folder / "gateway.pem"))
    else:
        monkeypatch.setenv("SSL_CERT_FILE", str(folder / "authority.pem"))
    for verb in (("chat", "hi", "--max-tokens", "2"), BENCH):
        refused = run(*verb, "--url", asking)
        assert refused.exit_code == Exit.UNREACHABLE
        assert f"hint: {SHOW_HINT}" in refused.stderr, refused.output
        monkeypatch.delenv("SSL_CERT_FILE", raising=False)
        answered = run("--tls", str(folder), *verb, "--url", asking)
        assert answered.exit_code == 0, answered.output
        monkeypatch.setenv("SSL_CERT_FILE", str(folder / "authority.pem"))


def test_the_folder_adds_no_one_to_whom_the_record_believes(secured: str, folder: Path) -> None:
    """Another certificate of the folder's authority is not the local cluster's gateway."""
    record(gateways=[secured], certificate=str(folder / "client.pem"))
    result = run("--tls", str(folder), "chat", "hi", "--max-tokens", "2", "--url", secured)
    assert result.exit_code == Exit.UNREACHABLE
    assert "CERTIFICATE_VERIFY_FAILED" in result.stderr


def test_doctor_compares_clocks_over_https_or_says_what_to_do(secured: str, folder: Path) -> None:
    status = pb.ClusterStatus(gateways=[pb.Gateway(name="gateway-0", url=secured)])
    around = Surroundings(Config(), status, {})
    (finding,) = checks.clock(around)
    assert finding.state == WARN and "SSL_CERT_FILE" in finding.remedy
    record(gateways=[secured], certificate=str(folder / "gateway.pem"))
    (finding,) = checks.clock(around)
    assert finding.state == OK, finding


@pytest.mark.parametrize(
    ("ahead", "said"),
    [(0.0, None), (-1.5, None), (-10.0, "+8 s"), (10.0, "-10 s")],
    ids=["same", "as busy servers are", "behind", "ahead"],
)
def test_doctor_names_a_clock_that_is_wrong(
    ahead: float, said: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The gateway's date is ``ahead`` seconds of this machine's clock, which stands on a whole second."""

    def answer(request: httpx.Request) -> httpx.Response:
        return httpx.Response(200, headers={"date": formatdate(1_000_000_000 + ahead, usegmt=True)})

    monkeypatch.setattr(checks.time, "time", lambda: 1_000_000_000.0)
    client = httpx.Client
    monkeypatch.setattr(
        checks.httpx, "Client", lambda **_: client(transport=httpx.MockTransport(answer), trust_env=False)
    )
    status = pb.ClusterStatus(gateways=[pb.Gateway(name="gateway-0", url="http://127.0.0.1:9")])
    (finding,) = checks.clock(Surroundings(Config(), status, {}))
    assert finding.state == (OK if said is None else WARN), finding
    assert said is None or f"this machine is {said} from gateway-0" in finding.text


def test_a_certificate_that_is_gone_is_named(secured: str, tmp_path: Path) -> None:
    record(gateways=[secured], certificate=str(tmp_path / "gone.pem"))
    result = run("chat", "hi")
    assert result.exit_code == Exit.USAGE
    assert f"{tmp_path}/gone.pem cannot be read" in result.stderr


def test_the_printed_curl_line_and_snippet_work_over_https(secured: str, folder: Path) -> None:
    made = config(folder)
    believe = Believe.of(made)
    assert believe == Believe(str(folder / "authority.pem"))
    line = curl(secured, "tiny", made, believe)
    asked = subprocess.run(shlex.split(line), capture_output=True, text=True, timeout=30)
    assert json.loads(asked.stdout)["choices"], asked.stderr
    code = snippet(secured, "tiny", made, believe)
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert told.returncode == 0 and told.stdout.strip(), told.stderr


def test_where_clients_need_a_certificate_the_printed_lines_show_it(folder: Path) -> None:
    made = config(folder, authority=True)
    believe = Believe.of(made)
    assert f"--cert {folder}/client.pem --key {folder}/client.key" in curl("https://g", "m", made, believe)
    assert f"load_cert_chain('{folder}/client.pem', '{folder}/client.key')" in snippet(
        "https://g", "m", made, believe
    )


def test_the_signer_of_a_certificate_is_found_among_files(folder: Path, tmp_path: Path) -> None:
    certificates.create(tmp_path / "other", [])
    other, ours = tmp_path / "other/authority.pem", folder / "authority.pem"
    assert authority_of(folder / "gateway.pem", [other, tmp_path / "none", ours]) == str(ours)
    assert authority_of(folder / "gateway.pem", [other, folder / "gateway.pem"]) is None
    assert authority_of(ours, [ours]) == str(ours), "its own"
    assert authority_of(tmp_path / "none", [ours]) is None


# A cluster that does not answer


@pytest.mark.parametrize(
    "verb", [["status"], ["get", "pools"], ["console"], ["chat", "hi"], list(BENCH)], ids=first
)
def test_whose_up_was_killed_the_verbs_say_so(verb: list[str]) -> None:
    record(control=AWAY, gateways=[f"http://{AWAY}"], admin=f"http://{AWAY}")
    result = run(*verb)
    assert result.exit_code == Exit.NOT_FOUND
    assert result.stderr.splitlines()[-2:] == [
        ENDED,
        "hint: start one with `tandem up`, or name one with --address HOST:PORT",
    ]
    assert not result.stdout


@pytest.mark.parametrize(
    ("verb", "part"),
    [(["status"], "controller"), (["console"], "controller"), (["chat", "hi"], "gateway")],
    ids=lambda given: given[0] if isinstance(given, list) else given,
)
def test_while_a_part_is_away_the_verbs_ask_for_patience(verb: list[str], part: str) -> None:
    record(control=AWAY, gateways=[f"http://{AWAY}"], admin=f"http://{AWAY}")
    with only_one():
        result = run(*verb)
    assert result.exit_code == Exit.UNREACHABLE
    assert result.stderr.splitlines()[-2:] == [
        f"error: the {part} is being started again",
        "hint: try again in some seconds",
    ]


def test_a_controller_that_listens_and_says_nothing_is_not_being_started_again() -> None:
    with socket.create_server(("127.0.0.1", 0)) as mute, only_one():
        record(control=f"127.0.0.1:{mute.getsockname()[1]}")
        result = run("--timeout", "300ms", "status")
    assert result.exit_code == Exit.UNREACHABLE
    assert "nothing answers at 127.0.0.1:" in result.stderr


@pytest.mark.parametrize("verb", [["status"], ["console"], ["chat", "hi"], list(BENCH)], ids=first)
def test_a_start_that_is_under_way_is_told_from_one_that_was_killed(verb: list[str]) -> None:
    record()
    with only_one():
        assert "the local cluster is still starting" in run(*verb).stderr
    assert ENDED in run(*verb).stderr


@pytest.mark.parametrize(
    "verb", [["status"], ["get", "pools"], ["chat", "hi"], ["console"], ["down"], list(BENCH)]
)
def test_without_a_cluster_every_verb_ends_with_3(verb: list[str]) -> None:
    result = run(*verb)
    assert result.exit_code == Exit.NOT_FOUND
    assert "error: no local cluster is running\n" in result.stderr


@pytest.mark.parametrize("address", ["foo", "foo:bar", ":1", "foo:1/x"])
def test_an_address_has_a_host_and_a_port(address: str) -> None:
    result = run("--address", address, "status")
    assert result.exit_code == Exit.USAGE
    assert result.stderr == f"error: --address: expected HOST:PORT, got '{address}'\n"


@pytest.mark.parametrize("piped", ["", " \n"])
def test_no_question_is_asked_of_nobody(piped: str) -> None:
    record(gateways=[f"http://{AWAY}"])
    result = CliRunner().invoke(build(), ["chat"], input=piped)
    assert result.exit_code == Exit.USAGE
    assert "error: no question" in result.stderr
