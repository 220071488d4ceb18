"""Frames arrive whole or not at all, over TCP and over shared memory, and no peer can make a channel hang."""

from __future__ import annotations

import fcntl
import os
import socket
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.errors import TransferFailed
from migration.framing import DATA, PREFIX, SEGMENT, Stream, pack
from migration.shm import Segment, ShmChannel, ShmTransport
from migration.tcp import SILENCE, TcpTransport
from migration.transport import MAX_HELLO, Address, Transport, choose, host_id
from tests.migration.pair import BOUND

SOL_TCP = socket.IPPROTO_TCP

KINDS: dict[str, tuple[type[Any], str]] = {"tcp": (TcpTransport, "127.0.0.1:0"), "shm": (ShmTransport, "")}


def connect(kind: str, timeout: float = BOUND) -> Iterator[tuple[Any, Any]]:
    made, address = KINDS[kind]
    transport: Transport = made(timeout)
    listener = transport.listen(address)
    near = transport.connect(listener.address, BOUND)
    far = listener.accept()
    near.trust()
    far.trust()
    yield near, far
    for end in (near, far, listener):
        end.close()


@pytest.fixture(params=list(KINDS))
def ends(request: pytest.FixtureRequest) -> Iterator[tuple[Any, Any]]:
    yield from connect(request.param)


@pytest.fixture(params=list(KINDS))
def hasty(request: pytest.FixtureRequest) -> Iterator[tuple[Any, Any]]:
    yield from connect(request.param, timeout=0.05)


def put(data: bytes) -> Any:
    def fill(view: memoryview) -> None:
        view[:] = data

    return fill


@pytest.mark.parametrize("size", [0, 1, 4095, 1 << 20, (1 << 20) + 1, 5 << 20])
def test_header_and_payload_arrive_as_they_were(ends: tuple[Any, Any], size: int) -> None:
    near, far = ends
    data = os.urandom(size)
    sender = threading.Thread(target=near.send, args=(b"header", size, put(data)))
    sender.start()
    frame = far.receive(BOUND)
    assert (frame.header, bytes(frame.payload)) == (b"header", data)
    frame.release()
    sender.join(BOUND)


def test_frames_keep_their_order_while_none_is_released(ends: tuple[Any, Any]) -> None:
    near, far = ends
    for number in range(3):
        near.send(b"%d" % number, 100, put(bytes([number]) * 100))
    for number in range(3):
        frame = far.receive(BOUND)
        assert (frame.header, bytes(frame.payload)) == (b"%d" % number, bytes([number]) * 100)
        frame.release()


def test_nothing_comes_within_the_time(ends: tuple[Any, Any]) -> None:
    assert ends[1].receive(0.0) is None


def test_the_end_of_the_peer_is_noticed(ends: tuple[Any, Any]) -> None:
    ends[0].close()
    with pytest.raises(TransferFailed):
        ends[1].receive(BOUND)


def test_a_peer_that_does_not_read_does_not_block_for_ever(hasty: tuple[Any, Any]) -> None:
    near, _ = hasty
    with pytest.raises(TransferFailed):
        send_without_end(near)


def send_without_end(channel: Any) -> None:
    for _ in range(100):
        channel.send(b"", 1 << 20, lambda view: None)


def test_a_frame_that_stops_half_way_does_not_block_for_ever(hasty: tuple[Any, Any]) -> None:
    near, far = hasty
    near._stream.write(pack(DATA, 0, b"header", 0, 0)[:-3])
    with pytest.raises(TransferFailed):
        far.receive(BOUND)


def test_segments_are_used_again(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[int] = []
    create = Segment.create
    monkeypatch.setattr(Segment, "create", lambda nbytes: made.append(nbytes) or create(nbytes))
    for near, far in connect("shm"):
        for size in (10, 1 << 20, 10, 1 << 20, 10, 1 << 20):
            near.send(b"", size, put(bytes(size)))
            far.receive(BOUND).release()
            near.send(b"")
            assert far.receive(BOUND) is not None
    assert len(made) <= 4


def test_a_sender_waits_for_a_segment_and_keeps_what_comes_meanwhile() -> None:
    for near, far in connect("shm"):
        frames = []
        for number in range(4):
            near.send(b"", 8, put(b"%8d" % number))
            frames.append(far.receive(BOUND))
        far.send(b"said meanwhile")
        waiting = threading.Thread(target=near.send, args=(b"", 8, put(b"the last")))
        waiting.start()
        frames[2].release()
        waiting.join(BOUND)
        assert bytes(far.receive(BOUND).payload) == b"the last"
        assert [bytes(frame.payload) for frame in frames[:2]] == [b"%8d" % 0, b"%8d" % 1]
        assert near.pending
        assert near.receive(BOUND).header == b"said meanwhile"


def test_shared_memory_that_changed_on_the_way_is_noticed_and_the_channel_goes_on() -> None:
    for near, far in connect("shm"):
        near.send(b"bad", 8, put(b"12345678"))
        with near._mine[0].view(8) as view:
            view[3] ^= 1
        frame = far.receive(BOUND)
        assert (frame.header, frame.payload) == (b"bad", None)
        near.send(b"good", 8, put(b"12345678"))
        assert bytes(far.receive(BOUND).payload) == b"12345678"


def test_a_payload_that_changed_on_the_way_is_noticed_over_tcp() -> None:
    for near, far in connect("tcp"):
        near._stream.write(pack(DATA, 0, b"bad", 8, 1234), b"12345678")
        frame = far.receive(BOUND)
        assert (frame.header, frame.payload) == (b"bad", None)


@pytest.mark.parametrize("kind", list(KINDS))
@given(st.data())
def test_a_flipped_bit_in_prefix_or_header_ends_the_channel(kind: str, data: st.DataObject) -> None:
    for near, far in connect(kind, timeout=0.2):
        frame = bytearray(pack(DATA, 0, b"a header", 0, 0))
        frame[data.draw(st.integers(0, len(frame) - 1))] ^= 1 << data.draw(st.integers(0, 7))
        near._stream.write(bytes(frame))
        near._stream._sock.shutdown(socket.SHUT_WR)
        with pytest.raises(TransferFailed):
            far.receive(BOUND)


@pytest.mark.parametrize("kind", list(KINDS))
@given(st.binary(min_size=1, max_size=200))
def test_garbage_ends_the_channel(kind: str, data: bytes) -> None:
    for near, far in connect(kind):
        near._stream.write(data)
        near._stream._sock.shutdown(socket.SHUT_WR)
        with pytest.raises(TransferFailed):
            far.receive(BOUND)


def test_a_stranger_cannot_make_a_channel_hold_much_memory() -> None:
    made, address = KINDS["tcp"]
    listener = made(BOUND).listen(address)
    near, far = made(BOUND).connect(listener.address, BOUND), listener.accept()
    near.send(b"x" * (MAX_HELLO + 1))
    with pytest.raises(TransferFailed, match="at most"):
        far.receive(BOUND)
    for end in (near, far, listener):
        end.close()


@pytest.mark.parametrize("sealed", [False, True])
def test_a_segment_that_could_be_cut_off_is_not_mapped(sealed: bool) -> None:
    descriptor = os.memfd_create("test", os.MFD_ALLOW_SEALING)
    os.ftruncate(descriptor, 1 << 20)
    if sealed:
        fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK)
        Segment.take(descriptor, 1 << 20).close()
    else:
        with pytest.raises(TransferFailed, match="sealed"):
            Segment.take(descriptor, 1 << 20)


def test_descriptors_that_nobody_asked_for_are_closed() -> None:
    before = len(os.listdir("/proc/self/fd"))
    for near, far in connect("shm"):
        descriptor = os.open("/dev/null", os.O_RDONLY)
        near._stream.write(pack(DATA, 0, b"", 0, 0), descriptor=descriptor)
        os.close(descriptor)
        assert far.receive(BOUND) is not None
    assert len(os.listdir("/proc/self/fd")) == before


WHOLE = pack(SEGMENT, 0, (1 << 20).to_bytes(8, "big"), 0, 0)
DAMAGED = WHOLE[:-1] + bytes([WHOLE[-1] ^ 1])


@pytest.mark.parametrize("trusted", [False, True])
@pytest.mark.parametrize(
    "sent",
    [b"x" * PREFIX.size, WHOLE[:9], WHOLE[:-3], DAMAGED, pack(SEGMENT, 9, b"", 0, 0), WHOLE],
    ids=["another protocol", "half a prefix", "half a header", "damaged", "no such slot", "no segment"],
)
def test_descriptors_of_what_is_refused_are_closed(sent: bytes, trusted: bool) -> None:
    """Whoever may connect could else use up all that the process may have."""
    before = len(os.listdir("/proc/self/fd"))
    transport = ShmTransport(BOUND)
    listener = transport.listen("")
    near = transport.connect(listener.address, BOUND)
    far = listener.accept()
    if trusted:
        far.trust()
    descriptor = os.open("/dev/null", os.O_RDONLY)
    near._stream.write(sent, descriptor=descriptor)
    near.close()
    with pytest.raises(TransferFailed):
        far.receive(BOUND)
    os.close(descriptor)
    far.close()
    listener.close()
    assert len(os.listdir("/proc/self/fd")) == before


def test_who_has_not_said_who_it_is_sends_no_memory() -> None:
    here, there = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    near, far = ShmChannel(here, BOUND), ShmChannel(there, BOUND)
    near.send(b"", 1 << 20, put(bytes(1 << 20)))
    with pytest.raises(TransferFailed, match="out of turn"):
        far.receive(BOUND)
    assert not far._theirs
    near.close()
    far.close()


def test_a_machine_that_was_switched_off_is_noticed() -> None:
    for ends in connect("tcp"):
        for end in ends:
            sock = end._stream._sock
            assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
            probes = sock.getsockopt(SOL_TCP, socket.TCP_KEEPCNT)
            waits = [socket.TCP_KEEPIDLE, *[socket.TCP_KEEPINTVL] * probes]
            assert sum(sock.getsockopt(SOL_TCP, option) for option in waits) == SILENCE
            assert sock.getsockopt(SOL_TCP, socket.TCP_USER_TIMEOUT) == SILENCE * 1000


def test_segments_end_with_the_process_that_made_them() -> None:
    """The name is gone before anybody could see it, and so is the memory once both ends are closed."""
    before = len(os.listdir("/proc/self/fd")), os.listdir("/dev/shm")
    for near, far in connect("shm"):
        near.send(b"", 1 << 20, lambda view: None)
        assert far.receive(BOUND) is not None
        assert isinstance(near, ShmChannel)
        assert os.listdir("/dev/shm") == before[1]
    assert (len(os.listdir("/proc/self/fd")), os.listdir("/dev/shm")) == before


def test_a_prefix_is_as_long_as_it_says() -> None:
    near, far = socket.socketpair()
    stream = Stream(far, BOUND)
    near.sendall(pack(DATA, 3, b"abc", 0, 9))
    head = stream.read(BOUND)
    assert head is not None
    assert (head.slot, head.header, head.checksum, PREFIX.size) == (3, b"abc", 9, 28)
    near.close()
    stream.close()


HERE = Address("d", "this host", "name", "10.0.0.1:7")
GPU = Address("d", "this host", "name", "10.0.0.1:7", "10.0.0.1:8", "10.0.0.1:9")
HAD = ("shm", "tcp")
ALL = ("shm", "tcp", "nccl", "nixl")


@pytest.mark.parametrize(
    ("address", "mine", "forced", "here", "chosen"),
    [
        (HERE, "this host", "auto", HAD, ["shm", "tcp"]),
        (HERE, "another", "auto", HAD, ["tcp"]),
        (HERE, "this host", "tcp", HAD, ["tcp"]),
        (HERE, "this host", "shm", HAD, ["shm"]),
        (Address("d", "this host", "", "10.0.0.1:7"), "this host", "auto", HAD, ["tcp"]),
        (GPU, "this host", "nccl", ALL, ["nccl", "nixl", "shm", "tcp"]),
        (GPU, "another", "nccl", (*HAD, "nccl"), ["nccl", "tcp"]),
        (HERE, "another", "nccl", (*HAD, "nccl"), ["tcp"]),
        (GPU, "this host", "shm", ALL, ["shm"]),
        (GPU, "another", "auto", HAD, ["tcp"]),
        (HERE, "another", "auto", ALL, ["tcp"]),
        (GPU, "another", "nixl", (*HAD, "nixl"), ["nixl", "tcp"]),
    ],
)
def test_the_transports_follow_from_where_the_ends_are(
    address: Address, mine: str, forced: str, here: tuple[str, ...], chosen: list[str]
) -> None:
    ways = choose(address, mine, forced, here)
    assert [name for name, _ in ways] == chosen
    assert all(where == getattr(address, name) for name, where in ways)


@pytest.mark.parametrize(
    ("address", "forced"),
    [
        (HERE, "shm"),
        (Address("d", "another", "name", ""), "tcp"),
        (Address("d", "this host", "name", ""), "auto"),
        (Address("d", "this host", "name", "", "10.0.0.1:8"), "nccl"),
    ],
)
def test_two_ends_without_a_way_say_which_setting_to_change(address: Address, forced: str) -> None:
    with pytest.raises(TransferFailed, match=r"transfer\.transport"):
        choose(address, "another", forced, HAD)


def test_one_process_has_one_host() -> None:
    assert host_id() == host_id() != ""


@pytest.mark.parametrize("address", ["", "nowhere", "host:port", "127.0.0.1:99999", "127.0.0.1:1"])
def test_an_address_that_cannot_be_reached_is_a_failed_transfer(address: str) -> None:
    with pytest.raises(TransferFailed):
        TcpTransport(BOUND).connect(address, 1.0)


def test_a_name_that_nobody_listens_at_is_a_failed_transfer() -> None:
    with pytest.raises(TransferFailed):
        ShmTransport(BOUND).connect("tandem-nobody", 1.0)
