"""Whatever a socket brings, what reads it answers with its own error, in time, in bounded memory."""

from __future__ import annotations

import contextlib
import logging
import socket
import threading
import zlib
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.errors import HandshakeRefused, TransferFailed
from engine.request import Request, Sampling
from engine.sequence import Epoch, Phase
from migration import handshake
from migration.envelope import Envelope, decode, encode
from migration.framing import CHECKED, MAGIC, PREFIX, Stream, pack
from migration.handshake import answer, call
from migration.messages import Abort, Commit, Copy, Hello, Proof, Renew, Reserve, Welcome
from migration.nccl import NcclRoad
from migration.paired import MEET, OFFER, ROOM, PairedChannel
from migration.shm import ShmChannel
from migration.state import ChoiceState, RequestState
from migration.tcp import TcpChannel, TcpTransport
from migration.transport import MAX_HEADER, MAX_HELLO, MAX_PAYLOAD, Channel
from migration.wire import MAX_TOKENS, start_from_wire
from tests.engine.mutants import mutate
from tests.engine.toy import prompt
from tests.migration.bounds import takes_at_most
from tests.migration.nccl_double import DoubleDevice
from tests.migration.pair import BOUND, QUICK, Ends, Engine, Home
from tests.migration.test_handshake import ONE, OTHER
from tests.migration.test_wire import envelopes, hellos

FACTOR = 200
"""Bytes of Python objects that a byte of a message may become: a token of one byte is an int in a tuple."""

READERS: dict[str, Callable[[bytes], object]] = {"envelope": decode, "start": start_from_wire}


def damaged(draw: st.DrawFn, whole: bytes) -> bytes:
    """A few bytes of it changed, cut out, or put in twice."""
    data = bytearray(whole)
    for _ in range(draw(st.integers(0, 4))):
        if not data:
            break
        first = draw(st.integers(0, len(data) - 1))
        last = draw(st.integers(first, min(len(data), first + 20)))
        how = draw(st.sampled_from(["flip", "cut", "twice", "other"]))
        if how == "flip":
            data[first] ^= 1 << draw(st.integers(0, 7))
        elif how == "cut":
            del data[first:last]
        elif how == "twice":
            data[first:first] = data[first:last]
        else:
            data[first:last] = draw(st.binary(max_size=20))
    return bytes(data)


@st.composite
def messages(draw: st.DrawFn) -> bytes:
    """Garbage, a damaged message, or one that is long for what it says."""
    if draw(st.booleans()):
        return draw(st.binary(max_size=400))
    return damaged(draw, encode(draw(envelopes())))


@pytest.mark.parametrize("name", READERS)
@given(messages())
def test_a_message_is_read_or_refused_in_a_multiple_of_its_size(name: str, data: bytes) -> None:
    with takes_at_most(FACTOR * len(data)), contextlib.suppress(TransferFailed):
        READERS[name](data)


def packed(tokens: int) -> bytes:
    """A RESERVE whose prompt has so many tokens, each of one byte."""
    request = Request("r", (1,) * tokens, Sampling(max_tokens=1))
    return encode(Envelope(Reserve(1), "s", request=request))


def test_a_prompt_of_single_bytes_takes_a_bounded_multiple_of_them() -> None:
    data = packed(1 << 16)
    with takes_at_most(FACTOR * len(data)):
        request = decode(data).request
    assert request is not None
    assert len(request.prompt) == 1 << 16


def test_a_prompt_that_is_too_long_is_refused_before_anything_is_built() -> None:
    longer = packed(MAX_TOKENS + 1)
    with takes_at_most(0), pytest.raises(TransferFailed, match="prompt tokens"):
        decode(longer)


# Frames: what is said of lengths is not believed before it is compared.


def said(length: int, nbytes: int, kind: int = 0, slot: int = 0) -> bytes:
    """A prefix that promises so much and keeps nothing of it."""
    return PREFIX.pack(MAGIC, kind, slot, length, nbytes, 0, 0)


@contextlib.contextmanager
def stream_of(data: bytes, *, trusted: bool = False) -> Iterator[Stream]:
    near, far = socket.socketpair()
    stream = Stream(far, BOUND)
    if trusted:
        stream.trust()
    writer = threading.Thread(target=_pour, args=(near, data))
    writer.start()
    try:
        yield stream
    finally:
        stream.close()
        writer.join(BOUND)
        near.close()


def _pour(sock: socket.socket, data: bytes) -> None:
    with contextlib.suppress(OSError):
        sock.sendall(data)
        sock.shutdown(socket.SHUT_WR)


LENGTHS = st.sampled_from([0, 1, MAX_HELLO, MAX_HELLO + 1, MAX_HEADER, MAX_HEADER + 1, 2**32 - 1])
PAYLOADS = st.sampled_from([0, 1, MAX_PAYLOAD, MAX_PAYLOAD + 1, 2**63, 2**64 - 1])


def promise(length: int, nbytes: int, *, trusted: bool) -> None:
    with (
        stream_of(said(length, nbytes), trusted=trusted) as stream,
        takes_at_most(MAX_HEADER if trusted else MAX_HELLO),
        contextlib.suppress(TransferFailed),
    ):
        stream.read(BOUND)


@given(LENGTHS, PAYLOADS, st.booleans())
def test_a_frame_takes_no_more_than_its_bounds_whatever_it_says(
    length: int, nbytes: int, trusted: bool
) -> None:
    promise(length, nbytes, trusted=trusted)


def test_a_reader_that_believes_lengths_would_be_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    mutate(monkeypatch, Stream, "_head", "length > self._max_header or nbytes > self._max_payload", "False")
    with pytest.raises(AssertionError, match="are allowed"):
        promise(1 << 23, 0, trusted=False)


def test_a_decoder_without_bounds_would_be_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("migration.wire.MAX_TOKENS", 1 << 40)
    with pytest.raises((AssertionError, pytest.fail.Exception)):
        test_a_prompt_that_is_too_long_is_refused_before_anything_is_built()


@st.composite
def frames(draw: st.DrawFn) -> bytes:
    """Some frames with right checksums and wrong contents, and some garbage between them."""
    out = b""
    for _ in range(draw(st.integers(1, 4))):
        kind = draw(st.integers(0, 4) | st.sampled_from([MEET, ROOM, OFFER, 99]))
        header = draw(st.binary(max_size=40) | st.integers(0, 2**64 - 1).map(lambda n: n.to_bytes(8, "big")))
        nbytes = draw(st.sampled_from([0, 0, 1, 100, 2**20, MAX_PAYLOAD, 2**40]))
        payload = draw(st.binary(max_size=100))
        out += pack(kind, draw(st.integers(0, 5)), header, nbytes, zlib.crc32(payload)) + payload
    return damaged(draw, out) if draw(st.booleans()) else out


def paired(sock: socket.socket) -> Channel:
    return PairedChannel(Stream(sock, 0.1), NcclRoad(DoubleDevice(tries=1)), 0.1, calls=False)


CHANNELS: dict[str, Callable[[socket.socket], Any]] = {
    "tcp": lambda sock: TcpChannel(sock, 0.1),
    "shm": lambda sock: ShmChannel(sock, 0.1),
    "paired": paired,
}


def sockets(kind: str) -> tuple[socket.socket, socket.socket]:
    if kind == "shm":
        return socket.socketpair()
    with socket.create_server(("127.0.0.1", 0)) as server:
        near = socket.create_connection(server.getsockname())
        return near, server.accept()[0]


@pytest.mark.parametrize("kind", CHANNELS)
@given(data=frames(), trusted=st.booleans())
def test_a_channel_gives_frames_or_ends_and_takes_no_more_than_a_payload(
    kind: str, data: bytes, trusted: bool
) -> None:
    near, far = sockets(kind)
    with takes_at_most(MAX_PAYLOAD + MAX_HEADER):
        channel = CHANNELS[kind](far)
        writer = threading.Thread(target=_pour, args=(near, data))
        writer.start()
        try:
            with contextlib.suppress(TransferFailed):
                if trusted:
                    channel.trust()
                while (frame := channel.receive(BOUND)) is not None:
                    frame.release()
        finally:
            channel.close()
            near.close()
            writer.join(BOUND)


# The handshake: whoever is at the other end, it ends with a word.


@contextlib.contextmanager
def stranger(says: list[bytes]) -> Iterator[TcpChannel]:
    """A channel whose other end says all this at once, and leaves."""
    near, far = sockets("tcp")
    writer = threading.Thread(target=_pour, args=(near, b"".join(pack(0, 0, one, 0, 0) for one in says)))
    writer.start()
    channel = TcpChannel(far, BOUND)
    try:
        yield channel
    finally:
        channel.close()
        near.close()
        writer.join(BOUND)


words = st.one_of(
    messages(),
    hellos.map(lambda hello: encode(Envelope(hello))),
    st.builds(
        lambda mac, version: encode(Envelope(Welcome(version, mac))),
        st.binary(max_size=32),
        st.integers(0, 9),
    ),
    envelopes().map(encode),
)


@given(st.lists(words, max_size=4))
def test_a_listener_refuses_strangers_whatever_they_say(says: list[bytes]) -> None:
    with (
        stranger(says) as channel,
        takes_at_most(4 * MAX_HELLO * FACTOR),
        pytest.raises((TransferFailed, HandshakeRefused)),
    ):
        answer(channel, OTHER, BOUND)


@given(st.lists(words, max_size=4))
def test_a_caller_refuses_strangers_whatever_they_say(says: list[bytes]) -> None:
    with (
        stranger(says) as channel,
        takes_at_most(4 * MAX_HELLO * FACTOR),
        pytest.raises((TransferFailed, HandshakeRefused)),
    ):
        call(channel, ONE, "other", BOUND)


def test_a_listener_that_skips_the_proof_would_be_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(handshake.hmac, "compare_digest", lambda one, other: True)
    hello = encode(Envelope(ONE.hello()))
    proof = encode(Envelope(Proof(b"no idea")))
    with stranger([hello, proof]) as channel:
        assert answer(channel, OTHER, BOUND).instance == ONE.instance


# The lobby and the sessions behind it: a peer with the secret that says what it likes, in any order.

REQUESTS = [
    Request(f"r{number}", prompt(9 + number), Sampling(max_tokens=4, n=1 + number)) for number in range(2)
]


@st.composite
def letters(draw: st.DrawFn) -> tuple[Envelope, int]:
    """An envelope and the bytes of its payload."""
    request = draw(st.sampled_from(REQUESTS))
    session, epoch = draw(st.sampled_from(["s", "t"])), Epoch(draw(st.integers(0, 1)), 0)
    blocks = draw(st.integers(0, 5) | st.just(1000))
    count = draw(st.integers(1, 3))
    state = RequestState(
        request,
        epoch,
        "home",
        tuple(
            ChoiceState(
                choice,
                tuple(draw(st.lists(st.integers(0, 9), max_size=2))),
                draw(st.integers(0, 9)),
                Phase.DECODE,
                blocks=tuple(draw(st.lists(st.integers(0, 5), max_size=4))),
            )
            for choice in range(draw(st.integers(0, request.sampling.n)))
        ),
        tuple(draw(st.sets(st.integers(0, request.sampling.n - 1)))),
    )
    message: Any = draw(
        st.sampled_from(
            [
                Reserve(blocks),
                Reserve(blocks, True),
                Copy(draw(st.integers(0, 5)), count),
                Commit(blocks),
                Abort("no more"),
                Renew(),
                ONE.hello(),
            ]
        )
    )
    nbytes = draw(st.sampled_from([count * 64, 0, 1, 64])) if isinstance(message, Copy) else 0
    return (
        Envelope(
            message,
            session,
            epoch,
            request if isinstance(message, Reserve) else None,
            state if isinstance(message, Commit) else None,
        ),
        nbytes,
    )


@contextlib.contextmanager
def instance() -> Iterator[tuple[Engine, Ends]]:
    home = Home()
    for request in REQUESTS:
        home.open(request, Epoch())
    home.answer = lambda instance, epoch: False
    engine = Engine("d", home, total=32, padding=0)
    both = Ends(engine, timeouts=QUICK, max_sessions=2, forced="tcp")
    try:
        yield engine, both
    finally:
        both.close()
        engine.loop.stop(BOUND)


@settings(max_examples=25)
@given(st.lists(letters(), min_size=1, max_size=12))
def test_a_peer_may_say_anything_and_the_books_balance_when_it_is_gone(
    everything: list[tuple[Envelope, int]],
) -> None:
    errors = logging.getLogger("migration.link")
    logged: list[logging.LogRecord] = []
    handler = logging.Handler(logging.ERROR)
    handler.emit = logged.append  # type: ignore[method-assign]
    errors.addHandler(handler)
    try:
        with instance() as (engine, both):
            channel = TcpTransport(BOUND).connect(both.receiver.address.tcp, BOUND)
            call(channel, engine.identity(), "d", BOUND)
            with contextlib.suppress(TransferFailed):
                for message, nbytes in everything:
                    channel.send(encode(message), nbytes)
            channel.close()
            engine.rest()
    finally:
        errors.removeHandler(handler)
    assert not logged, [record.exc_info for record in logged]


def test_hello_is_still_what_is_fuzzed() -> None:
    """The strategies above reach what a listener reads first."""
    assert isinstance(decode(encode(Envelope(ONE.hello()))).message, Hello)
    assert PREFIX.size - CHECKED == 4
