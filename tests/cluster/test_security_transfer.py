"""What strangers may cost a transfer port: connections, and memory before one has proved itself."""

from __future__ import annotations

import asyncio
import resource
import select
import socket
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import ExitStack, asynccontextmanager, contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from engine.errors import TransferFailed
from migration import handshake
from migration.envelope import Envelope, encode
from migration.framing import DATA, MAGIC, PREFIX, Stream, pack
from migration.handshake import Agreement, Identity
from migration.messages import Proof
from migration.receiver import CONNECTIONS
from migration.tcp import TcpTransport
from tests.cluster.doubles import until
from tests.cluster.local_cluster import in_a_thread
from tests.cluster.pools import pools

UNPROVED = 16 * 2**10
"""Bytes, as docs/security.md says."""

SOON = 2.0
"""Seconds in which a refused connection has ended; one that is only silent goes on for 5."""

WITHIN = 20.0
HANDLES = 4096
"""Both ends of so many connections are in this process."""


class Port:
    """Where an instance listens, and who it takes for one of its own."""

    def __init__(self, address: str, known: Identity, instance: str) -> None:
        self.address = address
        self.known = known
        self.instance = instance

    def dial(self) -> socket.socket:
        host, _, port = self.address.rpartition(":")
        return socket.create_connection((host, int(port)), WITHIN)

    def greet(self) -> Agreement:
        """As an instance of the cluster does it, over a connection of its own."""
        channel = TcpTransport(WITHIN).connect(self.address, WITHIN)
        try:
            return handshake.call(channel, self.known, self.instance, WITHIN)
        finally:
            channel.close()


@pytest.fixture(scope="module")
def port(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Port]:
    """That of a whole instance."""
    found: list[Port] = []

    @asynccontextmanager
    async def served() -> AsyncIterator[str]:
        cache = tmp_path_factory.mktemp("cache")
        async with pools(cache, prefill=False, transport="tcp", model=tiny_model, blocks=64) as real:
            instance = real.decode.instance
            known = replace(instance._receiver._identity, instance="another")
            found.append(Port(instance.description.address.tcp, known, instance.name))
            yield found[0].address
            await until(lambda: not instance._receiver._links)

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, HANDLES), hard))
    try:
        with in_a_thread(served()):
            yield found[0]
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def ended(sock: socket.socket, within: float) -> bool:
    """Whether the other end has hung up; what it says before is read."""
    sock.settimeout(within)
    try:
        while sock.recv(4096):
            pass
    except TimeoutError:
        return False
    except ConnectionError:
        return True
    return True


@contextmanager
def dialled(port: Port) -> Iterator[socket.socket]:
    with port.dial() as sock:
        yield sock


# So many connections


def test_a_transfer_port_has_256_connections_and_hangs_up_on_the_next(port: Port) -> None:
    assert CONNECTIONS == 256
    with ExitStack() as stack:
        strangers = [stack.enter_context(port.dial()) for _ in range(CONNECTIONS)]
        # Connections are taken in the order in which they came.
        for _ in range(3):
            assert ended(stack.enter_context(port.dial()), SOON)
        poll = select.poll()
        for one in strangers:
            poll.register(one, select.POLLIN)
        assert poll.poll(0) == [], "those that are in stay in"
        strangers[0].close()
        asyncio.run(until(lambda: _comes_in(port)))


def _comes_in(port: Port) -> bool:
    try:
        return port.greet().instance == port.instance
    except TransferFailed:
        return False


def test_an_instance_is_served_when_strangers_have_gone(port: Port) -> None:
    with ExitStack() as stack:
        for _ in range(8):
            stack.enter_context(port.dial()).sendall(b"GET / HTTP/1.1\r\n\r\n" * 4)
        assert port.greet().instance == port.instance


# So much memory


def said(header: int, payload: int) -> bytes:
    """The beginning of a frame: it promises so many bytes, of which none follow."""
    return PREFIX.pack(MAGIC, DATA, 0, header, payload, 0, 0)


def unknown(sock: socket.socket, port: Port) -> None:
    """Nothing has been said yet."""


def greeted(sock: socket.socket, port: Port) -> None:
    """Its HELLO was answered, which anybody's is: it has proved nothing."""
    hello = encode(Envelope(port.known.hello()))
    sock.sendall(pack(DATA, 0, hello, 0, 0))
    assert Stream(sock, WITHIN).read(WITHIN) is not None


Introduction = Callable[[socket.socket, Port], None]
introductions = pytest.mark.parametrize("introduce", [unknown, greeted])


@introductions
@pytest.mark.parametrize(
    ("header", "payload"), [(UNPROVED + 1, 0), (2**32 - 1, 0), (16, 1), (16, 2**40)], ids=str
)
def test_a_stranger_that_promises_more_than_16_kib_or_a_payload_is_hung_up_on(
    port: Port, introduce: Introduction, header: int, payload: int
) -> None:
    """At once: nothing of what is promised is awaited."""
    with dialled(port) as sock:
        introduce(sock, port)
        sock.sendall(said(header, payload))
        assert ended(sock, SOON)


@introductions
def test_up_to_16_kib_of_a_stranger_are_awaited(port: Port, introduce: Introduction) -> None:
    with dialled(port) as sock:
        introduce(sock, port)
        sock.sendall(said(UNPROVED, 0))
        assert not ended(sock, 0.3)


def test_who_has_proved_itself_may_send_more(port: Port) -> None:
    """The bound is for strangers: a state of a long request is larger."""
    channel = TcpTransport(WITHIN).connect(port.address, WITHIN)
    sock = channel.stream._sock
    try:
        handshake.call(channel, port.known, port.instance, WITHIN)
        sock.sendall(said(UNPROVED + 1, 2**20))
        assert not ended(sock, 0.3)
    finally:
        channel.close()


def test_a_wrong_proof_does_not_lift_the_bound(port: Port) -> None:
    with dialled(port) as sock:
        greeted(sock, port)
        proof = encode(Envelope(Proof(b"x" * 32)))
        sock.sendall(pack(DATA, 0, proof, 0, 0) + said(UNPROVED + 1, 0))
        assert ended(sock, SOON)
