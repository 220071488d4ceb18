"""Two instances talk only if they share secret, version, layout and weights; what differs is named."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest

from engine.errors import HandshakeRefused, MovementError, TransferFailed
from migration.envelope import Envelope, encode
from migration.handshake import MAX_BLOCK, Agreement, Identity, answer, call
from migration.messages import Contents, Renew, Welcome
from migration.state import VERSION
from migration.tcp import TcpTransport
from migration.transport import Channel
from tests.engine.toy import ToyRunner
from tests.migration.pair import BOUND, ToyStore

CONTENTS = Contents(1, 1, 2, "int64")
ONE = Identity("one", "toy blocks", 4, 64, "weights", b"secret", CONTENTS)
OTHER = replace(ONE, instance="other")


@contextmanager
def connected() -> Iterator[tuple[Channel, Channel]]:
    transport = TcpTransport(BOUND)
    listener = transport.listen("127.0.0.1:0")
    near = transport.connect(listener.address, BOUND)
    far = listener.accept()
    yield near, far
    for end in (near, far, listener):
        end.close()


@pytest.fixture
def ends() -> Iterator[tuple[Channel, Channel]]:
    with connected() as both:
        yield both


def meet(ends: tuple[Channel, Channel], caller: Identity, listener: Identity, expected: str = "other") -> Any:
    """What the caller gets, and what the listener gets."""
    results: list[Any] = []

    def listen() -> None:
        try:
            results.append(answer(ends[1], listener, BOUND))
        except MovementError as error:
            results.append(error)

    thread = threading.Thread(target=listen)
    thread.start()
    try:
        heard: Any = call(ends[0], caller, expected, BOUND)
    except MovementError as error:
        heard = error
        ends[0].close()
    thread.join(BOUND)
    return heard, results[0]


def test_two_of_one_kind_agree_on_the_newest_version(ends: tuple[Channel, Channel]) -> None:
    caller = replace(ONE, oldest=2, newest=5)
    caller_heard, listener_heard = meet(ends, caller, replace(OTHER, oldest=1, newest=4))
    assert caller_heard == Agreement("other", 4, 4)
    assert listener_heard == Agreement("one", 4, 4)


def test_blocks_of_another_size_are_cut_to_the_listeners(ends: tuple[Channel, Channel]) -> None:
    caller, listener = replace(ONE, block_size=8, block_nbytes=128), replace(OTHER, layout="other words")
    heard, _ = meet(ends, caller, listener)
    assert heard == Agreement("other", VERSION, 4)


@pytest.mark.parametrize("older", ["caller", "listener"])
def test_with_one_of_version_1_blocks_must_be_alike(ends: tuple[Channel, Channel], older: str) -> None:
    """Version 1 said nothing of a block's contents, and knew no other block size than its own."""
    identities = {"caller": ONE, "listener": OTHER}
    identities[older] = replace(identities[older], contents=None, newest=1)
    heard, _ = meet(ends, identities["caller"], identities["listener"])
    assert heard == Agreement("other", 1, 4)
    with connected() as again:
        identities["listener"] = replace(identities["listener"], block_size=8, block_nbytes=128)
        heard, _ = meet(again, identities["caller"], identities["listener"])
        assert isinstance(heard, HandshakeRefused)
        assert heard.message.startswith("layout: ")
        assert "engine.block_size" in heard.message


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("secret", {"secret": b"another"}),
        ("version", {"oldest": VERSION + 1, "newest": VERSION + 2}),
        ("layout", {"block_size": 8}),
        ("layout", {"block_nbytes": 128}),
        ("layout", {"block_size": 0, "block_nbytes": 0}),
        ("layout", {"block_size": MAX_BLOCK * 2, "block_nbytes": 16 * MAX_BLOCK * 2}),
        ("layout", {"contents": None}),
        ("layout", {"contents": replace(CONTENTS, layers=2)}),
        ("layout", {"contents": replace(CONTENTS, kv_heads=2)}),
        ("layout", {"contents": replace(CONTENTS, dtype="float32")}),
        ("weights", {"weights_digest": "others"}),
    ],
)
def test_what_differs_is_refused_by_name(
    ends: tuple[Channel, Channel], name: str, changes: dict[str, Any]
) -> None:
    heard, _ = meet(ends, ONE, replace(OTHER, **changes))
    assert isinstance(heard, HandshakeRefused)
    assert heard.message.startswith(f"{name}: ")


def test_another_instance_at_the_address_is_refused(ends: tuple[Channel, Channel]) -> None:
    heard, _ = meet(ends, ONE, OTHER, expected="third")
    assert isinstance(heard, HandshakeRefused)
    assert heard.message.startswith("instance: ")


def test_a_listener_that_does_not_know_the_secret_is_found_out(ends: tuple[Channel, Channel]) -> None:
    def impostor() -> None:
        ends[1].receive(BOUND)
        ends[1].send(encode(Envelope(OTHER.hello())))
        ends[1].receive(BOUND)
        ends[1].send(encode(Envelope(Welcome(1, b"no idea"))))

    thread = threading.Thread(target=impostor)
    thread.start()
    with pytest.raises(HandshakeRefused, match="secret"):
        call(ends[0], ONE, "other", BOUND)
    thread.join(BOUND)


def test_a_recorded_proof_cannot_be_used_again(
    ends: tuple[Channel, Channel], monkeypatch: pytest.MonkeyPatch
) -> None:
    recorded: list[bytes] = []
    send = ends[0].send
    monkeypatch.setattr(ends[0], "send", lambda header: (recorded.append(header), send(header)))
    assert meet(ends, ONE, OTHER)[1] == Agreement("one", VERSION, 4)
    with connected() as (near, far):
        for header in recorded:
            near.send(header)
        with pytest.raises(HandshakeRefused, match="secret"):
            answer(far, OTHER, BOUND)


@pytest.mark.parametrize("first", [b"", b"GET / HTTP/1.1\r\n\r\n", encode(Envelope(Renew()))])
def test_something_else_than_a_hello_is_refused(ends: tuple[Channel, Channel], first: bytes) -> None:
    ends[0].send(first)
    with pytest.raises(TransferFailed):
        answer(ends[1], OTHER, BOUND)


def test_silence_is_bounded(ends: tuple[Channel, Channel]) -> None:
    with pytest.raises(TransferFailed, match="in time"):
        answer(ends[1], OTHER, 0.01)


def test_an_empty_secret_is_not_taken() -> None:
    with pytest.raises(ValueError, match="empty"):
        Identity.of("one", ToyStore(ToyRunner(1, 4)), "weights", b"")
