"""Certificates on every port: who has none of the right authority is refused, who has one is served."""

from __future__ import annotations

import asyncio
import select
import shutil
import socket
import ssl
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from pathlib import Path

import grpc
import httpx
import openai
import pytest
from cryptography import x509
from typer.testing import CliRunner

from cluster import certificates, control_pb2_grpc, rpc
from cluster import control_pb2 as pb
from cluster.admin_server import AdminServer
from cluster.cli.main import build
from cluster.config_admin import AdminConfig
from cluster.config_security import ClusterTls, HttpTls, SecurityConfig
from cluster.control_client import ControlClient
from cluster.tls import Tls, cluster_tls, pinned
from cluster.token_stream import HomeService
from cluster.token_streams import TokenStreams
from engine.errors import ConfigError, InvalidKey, TransferFailed, Unreachable
from engine.request import Request, Sampling
from migration.framing import DATA, Stream, pack
from migration.tcp import TcpChannel, TcpTransport
from tests.cluster.doubles import SCRIPT
from tests.cluster.local_cluster import in_a_thread, served_in_a_thread
from tests.cluster.made_up import CONFIG, Fleet, controlling
from tests.cluster.pools import pools

TOKEN = "a secret for tests"
BLOCK = bytes(range(250)) * 400


@pytest.fixture(scope="module")
def ours(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("ours")
    certificates.create(folder, ["gateway.example"])
    return folder


@pytest.fixture(scope="module")
def theirs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Certificates of another authority."""
    folder = tmp_path_factory.mktemp("theirs")
    certificates.create(folder, [])
    return folder


def files(folder: Path, name: str = "cluster", authority: Path | None = None) -> Tls:
    return Tls(
        str(folder / f"{name}.pem"),
        str(folder / f"{name}.key"),
        str((authority or folder) / "authority.pem"),
        setting="security.cluster_tls",
        name="tandem",
    )


# gRPC: control and push


class Control(control_pb2_grpc.ControlServicer):
    async def GetStatus(
        self, request: pb.StatusRequest, context: grpc.aio.ServicerContext[object, object]
    ) -> pb.ClusterStatus:
        return pb.ClusterStatus(version="behind certificates")


@contextmanager
def serving(tls: Tls) -> Iterator[str]:
    """A control and a home port; gives host:port."""
    started: list[str] = []
    up, done = threading.Event(), threading.Event()

    async def main() -> None:
        server = rpc.server(TOKEN)
        control_pb2_grpc.add_ControlServicer_to_server(Control(), server)
        control_pb2_grpc.add_HomeServicer_to_server(HomeService(TokenStreams()), server)
        started.append(rpc.listen(server, "127.0.0.1", 0, setting="none", tls=tls))
        await server.start()
        up.set()
        await asyncio.to_thread(done.wait)
        await server.stop(0)

    thread = threading.Thread(target=lambda: asyncio.run(main()))
    thread.start()
    try:
        assert up.wait(20)
        yield started[0]
    finally:
        done.set()
        thread.join(20)


def version(address: str, tls: Tls | None, token: str = TOKEN) -> str:
    with ControlClient(address, token, timeout=5.0, tls=tls) as client:
        return client.status().version


async def claims(address: str, tls: Tls | None, token: str = TOKEN) -> bool:
    """Whether a push port answers, with a refusal of a claim that it does not know."""
    async with rpc.channel(address, token, tls) as channel:
        reply = await control_pb2_grpc.HomeStub(channel).Claim(pb.ClaimRequest(request_id="x"), timeout=5)
        return not reply.granted


def test_a_certificate_of_the_cluster_and_the_token_come_in(ours: Path) -> None:
    with serving(files(ours)) as address:
        assert version(address, files(ours)) == "behind certificates"
        assert version(address, files(ours, "client")) == "behind certificates", "an operator's"
        assert asyncio.run(claims(address, files(ours)))


def test_a_certificate_does_not_replace_the_token(ours: Path) -> None:
    with serving(files(ours)) as address, pytest.raises(InvalidKey):
        version(address, files(ours), token="wrong")


@pytest.mark.parametrize("who", ["no certificate", "another authority's", "another's, but trusts ours"])
def test_others_do_not_get_past_the_handshake(ours: Path, theirs: Path, who: str) -> None:
    tls = {
        "no certificate": None,
        "another authority's": files(theirs),
        "another's, but trusts ours": files(theirs, authority=ours),
    }[who]
    with serving(files(ours)) as address:
        with pytest.raises(Unreachable):
            version(address, tls)
        with pytest.raises(grpc.aio.AioRpcError):
            asyncio.run(claims(address, tls))


def test_an_impostor_of_another_authority_gets_no_token(ours: Path, theirs: Path) -> None:
    """Who is called by the wrong server does not show its secret."""
    with serving(files(theirs, authority=ours)) as address, pytest.raises(Unreachable):
        version(address, files(ours))


def test_a_server_without_the_clusters_name_is_not_believed(ours: Path) -> None:
    """The gateway's certificate is of the same authority, and lies where the world's clients come in."""
    with serving(files(ours, "gateway")) as address, pytest.raises(Unreachable):
        version(address, files(ours))


def test_renewed_certificates_are_shown_to_the_next_connection(tmp_path: Path, theirs: Path) -> None:
    certificates.create(tmp_path, [])
    with serving(files(tmp_path)) as address:
        before = served_certificate(address, tmp_path)
        certificates.renew(tmp_path, [])
        assert served_certificate(address, tmp_path) != before
        assert version(address, files(tmp_path)) == "behind certificates"
        for file in theirs.iterdir():
            shutil.copy(file, tmp_path / file.name)
        assert version(address, files(theirs)) == "behind certificates", "another authority altogether"


def served_certificate(address: str, folder: Path) -> bytes:
    host, _, port = address.rpartition(":")
    context = files(folder).context(server=False)
    context.set_alpn_protocols(["h2"])
    with (
        socket.create_connection((host, int(port)), 5) as plain,
        context.wrap_socket(plain, server_hostname="tandem") as secured,
    ):
        return secured.getpeercert(binary_form=True) or b""


# TCP: transfer


@contextmanager
def echoing(tls: Tls) -> Iterator[str]:
    """Answers the first frame of each connection, until the first connection that is sound has ended."""
    listener = TcpTransport(2.0, tls).listen("127.0.0.1:0")
    ended = threading.Event()

    def serve() -> None:
        while not ended.is_set():
            channel = listener.accept()
            with suppress(TransferFailed):
                frame = channel.receive(2.0)
                assert frame is not None
                channel.trust()
                for _ in range(3):
                    channel.send(frame.header, 100_000, lambda view: view.__setitem__(slice(None), BLOCK))
            channel.close()

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    try:
        yield listener.address
    finally:
        ended.set()
        with suppress(TransferFailed):
            TcpTransport(2.0, tls).connect(listener.address, 2.0).close()
        thread.join(10)
        listener.close()


def test_frames_go_through_tls_whole(ours: Path) -> None:
    with echoing(files(ours)) as address:
        channel = TcpTransport(2.0, files(ours)).connect(address, 2.0)
        channel.trust()
        channel.send(b"hello")
        for _ in range(3):
            frame = channel.receive(2.0)
            assert frame is not None and frame.header == b"hello"
            assert frame.payload is not None and bytes(frame.payload) == BLOCK
            frame.release()
        channel.close()


def test_what_was_decrypted_already_is_not_waited_for(ours: Path) -> None:
    """Two small frames in one record: the descriptor shows nothing after the first."""
    left, right = socket.socketpair()
    answering = files(ours).server(right)
    accepting = threading.Thread(target=answering.do_handshake)
    accepting.start()
    with files(ours).client(left) as sender, answering:
        accepting.join(10)
        sender.sendall(pack(DATA, 0, b"one", 0, 0) + pack(DATA, 0, b"two", 0, 0))
        stream = Stream(answering, 2.0)
        one = stream.read(2.0)
        assert one is not None and one.header == b"one"
        assert stream.pending
        assert not select.select([answering], [], [], 0)[0]
        two = stream.read(0.0)
        assert two is not None and two.header == b"two"
        assert not stream.pending and stream.read(0.0) is None


def receive(channel: TcpChannel) -> bytes:
    frame = channel.receive(2.0)
    assert frame is not None
    header = frame.header
    frame.release()
    return header


def exchange(transport: TcpTransport, address: str) -> None:
    """Raises TransferFailed if no frame comes back."""
    channel = transport.connect(address, 1.0)
    try:
        channel.send(b"hello")
        if channel.receive(2.0) is None:
            raise TransferFailed("no answer")
    finally:
        channel.close()


@pytest.mark.parametrize("who", ["plain TCP", "another authority's", "another's, but trusts ours"])
def test_others_exchange_no_frame(ours: Path, theirs: Path, who: str) -> None:
    tls = {
        "plain TCP": None,
        "another authority's": files(theirs),
        "another's, but trusts ours": files(theirs, authority=ours),
    }[who]
    with echoing(files(ours)) as address, pytest.raises(TransferFailed):
        exchange(TcpTransport(1.0, tls), address)


def test_a_caller_that_never_speaks_does_not_hold_up_the_next(ours: Path) -> None:
    """The handshake is not done where connections are taken in."""
    listener = TcpTransport(5.0, files(ours)).listen("127.0.0.1:0")
    host, _, port = listener.address.rpartition(":")
    silent = socket.create_connection((host, int(port)))
    stuck = listener.accept()
    calling: list[TcpChannel] = []

    def call() -> None:
        calling.append(TcpTransport(5.0, files(ours)).connect(listener.address, 5.0))
        calling[0].send(b"hello")

    thread = threading.Thread(target=call)
    thread.start()
    answering = listener.accept()
    assert receive(answering) == b"hello"
    thread.join(10)
    for one in (stuck, answering, *calling, listener, silent):
        one.close()


def test_requests_pass_from_pool_to_pool_with_certificates_on_both_ports(
    ours: Path, tiny_model: Path, tmp_path: Path
) -> None:
    """Whole instances: prompts are prefilled in one, handed over through TCP, and pushed home, all in TLS."""
    security = SecurityConfig(
        cluster_tls=ClusterTls(
            certificate=str(ours / "cluster.pem"),
            key=str(ours / "cluster.key"),
            authority=str(ours / "authority.pem"),
        )
    )
    prompts = [tuple(range(3, 3 + length)) for length in (1, 15, 64, 130)]
    requests = [
        Request(f"r-{number}", prompt, Sampling(max_tokens=12, temperature=0.0))
        for number, prompt in enumerate(prompts)
    ]

    async def ask(**options: object) -> list[list[int]]:
        async with pools(tmp_path, model=tiny_model, budget=64, blocks=64, **options) as both:  # type: ignore[arg-type]
            tokens = await both.ask(requests, together=4)
            if options["prefill"]:
                assert both.prefill.status().handoffs == len(requests)
                assert cluster_tls(security.cluster_tls) is not None
            return tokens

    secured = asyncio.run(ask(prefill=True, transport="tcp", security=security))
    assert secured == asyncio.run(ask(prefill=False))
    assert all(len(tokens) for tokens in secured)


# HTTPS: the gateway


def gateway_files(folder: Path, authority: Path | None = None) -> Tls:
    return Tls(
        str(folder / "gateway.pem"),
        str(folder / "gateway.key"),
        None if authority is None else str(authority / "authority.pem"),
        setting="security.gateway_tls",
    )


def client_context(folder: Path, *, shows: Path | None = None) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=str(folder / "authority.pem"))
    if shows is not None:
        context.load_cert_chain(shows / "client.pem", shows / "client.key")
    return context


def test_openais_client_talks_https_and_streams(ours: Path) -> None:
    with (
        served_in_a_thread(tls=gateway_files(ours)) as url,
        httpx.Client(verify=client_context(ours)) as http,
        openai.OpenAI(base_url=f"{url}/v1", api_key="none", http_client=http, max_retries=0) as client,
    ):
        assert url.startswith("https://127.0.0.1:")
        stream = client.completions.create(model="tiny", prompt="hi", max_tokens=10, stream=True)
        assert "".join(chunk.choices[0].text for chunk in stream) == SCRIPT[:10]


def test_plain_http_and_other_authorities_are_refused(ours: Path, theirs: Path) -> None:
    with served_in_a_thread(tls=gateway_files(ours)) as url:
        with pytest.raises(httpx.ConnectError):
            httpx.get(f"{url}/health", verify=client_context(theirs))
        with pytest.raises(httpx.TransportError):
            httpx.get(f"{url.replace('https', 'http')}/health")
        assert httpx.get(f"{url}/health", verify=pinned(ours / "gateway.pem")).status_code == 200
        with pytest.raises(httpx.ConnectError):
            httpx.get(f"{url}/health", verify=pinned(theirs / "gateway.pem"))


def test_with_an_authority_only_clients_of_it_come_in(ours: Path, theirs: Path) -> None:
    with served_in_a_thread(tls=gateway_files(ours, authority=ours)) as url:
        for shows in (None, theirs):
            with pytest.raises(httpx.TransportError):
                httpx.get(f"{url}/health", verify=client_context(ours, shows=shows))
        assert httpx.get(f"{url}/health", verify=client_context(ours, shows=ours)).status_code == 200


def test_a_gateway_shows_renewed_certificates_without_a_restart(tmp_path: Path) -> None:
    certificates.create(tmp_path, [])
    with served_in_a_thread(tls=gateway_files(tmp_path)) as url:
        before = pinned(tmp_path / "gateway.pem")
        assert httpx.get(f"{url}/health", verify=before).status_code == 200
        certificates.renew(tmp_path, [])
        assert httpx.get(f"{url}/health", verify=pinned(tmp_path / "gateway.pem")).status_code == 200
        with pytest.raises(httpx.ConnectError):
            httpx.get(f"{url}/health", verify=before)


def test_old_versions_of_tls_are_refused(ours: Path) -> None:
    context = client_context(ours)
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    with served_in_a_thread(tls=gateway_files(ours)) as url:
        assert httpx.get(f"{url}/health", verify=context).status_code == 200
    assert gateway_files(ours).context(server=True).minimum_version == ssl.TLSVersion.TLSv1_2
    assert files(ours).context(server=True).minimum_version == ssl.TLSVersion.TLSv1_3


# HTTPS: the admin port


@asynccontextmanager
async def admin_served(tls: HttpTls) -> AsyncIterator[str]:
    """The admin port as the controller serves it; gives its URL."""
    changes = {"admin": AdminConfig(port=0, token=TOKEN), "security": SecurityConfig(admin_tls=tls)}
    async with controlling(Fleet(), CONFIG.model_copy(update=changes)) as controller:
        server = AdminServer(controller)
        server.start()
        try:
            yield controller.admin
        finally:
            await server.close()


def test_the_admin_port_with_an_authority_lets_only_clients_of_it_come_in(ours: Path, theirs: Path) -> None:
    """The token is no way around the certificate, nor the certificate around the token."""
    shown = (str(ours / name) for name in ("gateway.pem", "gateway.key", "authority.pem"))
    tls = HttpTls(**dict(zip(("certificate", "key", "authority"), shown, strict=True)))
    bearer = {"authorization": f"Bearer {TOKEN}"}
    with in_a_thread(admin_served(tls)) as url:
        assert url.startswith("https://")
        for path in ("/health", "/admin/v1/status", "/console"):
            for shows in (None, theirs):
                with pytest.raises(httpx.TransportError):
                    httpx.get(f"{url}{path}", headers=bearer, verify=client_context(ours, shows=shows))
        known = client_context(ours, shows=ours)
        assert httpx.get(f"{url}/admin/v1/status", headers=bearer, verify=known).status_code == 200
        assert httpx.get(f"{url}/admin/v1/status", verify=known).status_code == 401


# Files


def test_files_that_don_t_fit_while_they_are_replaced_leave_the_last_ones_in_use(tmp_path: Path) -> None:
    certificates.create(tmp_path, [])
    tls = files(tmp_path)
    before = tls.context(server=True)
    (tmp_path / "cluster.key").write_text("half a")
    assert tls.context(server=True) is before
    certificates.renew(tmp_path, [])
    assert tls.context(server=True) is not before


def test_what_is_no_certificate_is_named(tmp_path: Path) -> None:
    certificates.create(tmp_path, [])
    (tmp_path / "authority.pem").write_text("nothing")
    with pytest.raises(ConfigError, match=r"security\.cluster_tls: .*authority\.pem is no authority"):
        files(tmp_path).check()


def test_the_command_makes_what_openssl_believes_and_keeps_keys_to_their_owner(tmp_path: Path) -> None:
    folder = tmp_path / "tls"
    done = CliRunner().invoke(build(), ["tls", "init", str(folder), "--host", "api.example", "--days", "30"])
    assert done.exit_code == 0, done.output
    assert "cluster_tls:" in done.stdout and f"{folder}/authority.pem" in done.stdout
    assert all(key.stat().st_mode & 0o777 == 0o600 for key in folder.glob("*.key"))
    assert folder.stat().st_mode & 0o777 == 0o700
    shown = x509.load_pem_x509_certificate((folder / "gateway.pem").read_bytes())
    names = shown.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert "api.example" in names.get_values_for_type(x509.DNSName)
    assert 29 <= (shown.not_valid_after_utc - shown.not_valid_before_utc).days <= 31
    again = CliRunner().invoke(build(), ["tls", "init", str(folder)])
    assert again.exit_code == 6 and "tandem tls renew" in again.stderr
    assert CliRunner().invoke(build(), ["tls", "renew", str(folder)]).exit_code == 0
    assert CliRunner().invoke(build(), ["tls", "renew", str(tmp_path / "none")]).exit_code == 2


def test_the_command_line_shows_an_operators_certificate(ours: Path, theirs: Path, tmp_path: Path) -> None:
    with serving(files(ours)) as address:
        where = ["--address", address, "--token", TOKEN]
        done = CliRunner().invoke(build(), ["--tls", str(ours), *where, "status"])
        assert done.exit_code == 0 and "behind certificates" in done.output
        plain = CliRunner().invoke(build(), [*where, "status"])
        assert plain.exit_code == 4
        assert "hint: where the control port has certificates, name yours: --tls DIR" in plain.stderr
        other = CliRunner().invoke(build(), ["--tls", str(theirs), *where, "status"])
        assert other.exit_code == 4
        assert "is of another authority than those of --tls DIR" in other.stderr
        assert CliRunner().invoke(build(), ["--tls", str(tmp_path), *where, "status"]).exit_code == 2


def test_of_a_chain_only_the_first_certificate_is_pinned(tmp_path: Path) -> None:
    """Whoever else its authority knows is not the server that is meant."""
    certificates.create(tmp_path, [])
    chain = tmp_path / "chain.pem"
    chain.write_bytes((tmp_path / "gateway.pem").read_bytes() + (tmp_path / "authority.pem").read_bytes())
    shown = pinned(chain).cert_store_stats()
    assert shown["x509"] == 1
    (tmp_path / "empty.pem").write_text("")
    with pytest.raises(OSError, match="holds no certificate"):
        pinned(tmp_path / "empty.pem")
