"""Transfers through NCCL, by a double of host memory and sockets: order, damage, peers that hang."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from engine.errors import SetupError, TransferFailed
from migration import nccl
from migration.framing import pack
from migration.link import Link
from migration.nccl import NcclRoad, nccl_transport
from migration.nccl_device import NcclDevice, obstacle
from migration.paired import MEET, ROOM, SLOTS, PairedChannel
from migration.peers import Peers
from migration.tcp import TcpTransport
from migration.transport import MAX_PAYLOAD, Transport
from tests.engine.mutants import mutate
from tests.engine.toy import alone, prompt, request
from tests.migration.nccl_double import DoubleDevice
from tests.migration.pair import BOUND, pair
from tests.migration.test_cut import travelling

ROOT = Path(__file__).resolve().parents[2]
HASTY = 0.3


def transport(device: DoubleDevice, timeout: float = BOUND) -> Transport:
    return nccl_transport(device, TcpTransport(timeout), timeout)


Ends = tuple[Any, Any, DoubleDevice, DoubleDevice]


@contextmanager
def ends(timeout: float = BOUND, *, met: bool = True) -> Iterator[Ends]:
    here, there = DoubleDevice(), DoubleDevice()
    listener = transport(there, timeout).listen("127.0.0.1:0")
    near = transport(here, timeout).connect(listener.address, timeout)
    far = listener.accept()
    try:
        if met:
            joining = threading.Thread(target=far.trust)
            joining.start()
            near.trust()
            joining.join(BOUND)
        yield near, far, here, there
    finally:
        for end in (near, far, listener):
            end.close()


def put(data: bytes) -> Any:
    def fill(view: memoryview) -> None:
        view[:] = data

    return fill


def deliver(near: Any, far: Any, header: bytes, data: bytes) -> Any:
    """Send in a thread, for the sender may have to wait for memory; what arrives."""
    sender = threading.Thread(target=near.send, args=(header, len(data), put(data)))
    sender.start()
    frame = far.receive(BOUND)
    sender.join(BOUND)
    return frame


def send_without_end(channel: Any) -> None:
    for _ in range(10 * SLOTS):
        channel.send(b"", 10, put(b"0123456789"))


@contextmanager
def other_process() -> Iterator[tuple[Any, subprocess.Popen[str]]]:
    """A channel to a process of its own, which answers with the checksum of each payload."""
    command = [sys.executable, "-m", "tests.migration.paired_peer", "double"]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        near = transport(DoubleDevice()).connect(process.stdout.readline().strip(), BOUND)
        try:
            near.trust()
            yield near, process
        finally:
            near.close()
    finally:
        process.kill()
        process.wait(BOUND)
        assert process.stdout is not None
        process.stdout.close()


def test_payloads_reach_another_process_whole_and_in_order() -> None:
    with other_process() as (near, process):
        sizes = [1, 4095, 1 << 20, (1 << 20) + 1, 3 << 20, 7, 1 << 20]
        sent = [os.urandom(size) for size in sizes]
        for number, data in enumerate(sent):
            near.send(b"%d" % number, len(data), put(data))
        said = [near.receive(BOUND).header for _ in sent]
        assert said == [b"%d %d" % (number, zlib.crc32(data)) for number, data in enumerate(sent)]
        near.send(b"end")
        assert process.wait(BOUND) == 0


def test_a_process_that_is_killed_ends_the_connection_in_time() -> None:
    with other_process() as (near, process):
        near.send(b"first", 10, put(b"0123456789"))
        assert near.receive(BOUND) is not None
        process.kill()
        with pytest.raises(TransferFailed):
            send_without_end(near)


def test_a_process_that_stands_still_holds_the_sender_up_no_longer_than_it_may() -> None:
    with other_process() as (near, process):
        near.send(b"first", 10, put(b"0123456789"))
        assert near.receive(BOUND) is not None
        near._timeout = HASTY
        process.send_signal(signal.SIGSTOP)
        begun = time.monotonic()
        with pytest.raises(TransferFailed, match=r"0\.3 s"):
            send_without_end(near)
        assert time.monotonic() - begun < BOUND / 2
        assert near._road._communicator is None
        process.send_signal(signal.SIGCONT)


def test_frames_are_refused_when_their_bytes_changed_on_the_way_and_the_channel_goes_on() -> None:
    with ends() as (near, far, _, _):
        near.tamper = lambda view: view.__setitem__(3, view[3] ^ 1)
        assert deliver(near, far, b"bad", b"12345678").payload is None
        near.tamper = None
        frame = deliver(near, far, b"good", b"12345678")
        assert (frame.header, bytes(frame.payload)) == (b"good", b"12345678")


def test_memory_is_used_again_and_no_more_than_a_few_pieces_of_it() -> None:
    with ends() as (near, far, _, _):
        for number in range(3 * SLOTS):
            frame = deliver(near, far, b"", b"%8d" % number)
            assert bytes(frame.payload) == b"%8d" % number
            frame.release()
        assert 1 <= len(near._slots) <= SLOTS


def test_one_is_filled_while_others_are_on_their_way() -> None:
    """The sender does not wait for the receiver: a few payloads may be between them."""
    with ends() as (near, far, here, _):
        held = [deliver(near, far, b"", b"%8d" % number) for number in range(SLOTS)]
        for frame in held:
            frame.release()
        frames = here.fills
        for number in range(SLOTS - 1):
            near.send(b"later", 8, put(b"%8d" % number))
        assert here.fills == frames + SLOTS - 1
        assert [bytes(far.receive(BOUND).payload) for _ in range(SLOTS - 1)] == [
            b"%8d" % number for number in range(SLOTS - 1)
        ]


def test_a_peer_that_never_joins_is_given_up() -> None:
    with ends(HASTY, met=False) as (near, far, here, there):
        there.joining.clear()

        def wait() -> None:
            with pytest.raises(TransferFailed):
                far.trust()

        waiting = threading.Thread(target=wait)
        waiting.start()
        with pytest.raises(TransferFailed, match="not met within"):
            near.trust()
        waiting.join(BOUND)
        assert not waiting.is_alive()
        there.joined()
        here.joined()


def test_who_joins_when_nobody_waits_any_more_leaves_at_once() -> None:
    device = DoubleDevice()
    road, other = NcclRoad(device), NcclRoad(DoubleDevice())
    place = road.greeting()
    road.abort()
    late = threading.Thread(target=other.join, args=(place,), kwargs={"calls": False})
    late.start()
    road.join(place, calls=True)
    late.join(BOUND)
    assert device.pairs[0].aborted.is_set()
    other.abort()


def test_a_receiver_to_whom_nothing_is_sent_after_all_gives_up_and_aborts() -> None:
    with ends(HASTY) as (near, far, here, there):
        deliver(near, far, b"", b"12345678").release()
        near.receive(0.0)
        here.pairs[0].held.clear()
        near.send(b"announced", 8, put(b"12345678"))
        with pytest.raises(TransferFailed, match="moved nothing"):
            far.receive(BOUND)
        assert there.pairs[0].aborted.is_set()


def hanging() -> None:
    with ends(HASTY) as (near, far, here, _):
        deliver(near, far, b"", b"12345678").release()
        here.pairs[0].held.clear()
        near.send(b"announced", 8, put(b"12345678"))
        ended = threading.Event()

        def receive() -> None:
            with pytest.raises(TransferFailed):
                far.receive(BOUND)
            ended.set()

        threading.Thread(target=receive, daemon=True).start()
        try:
            assert ended.wait(5 * HASTY)
        finally:
            here.pairs[0].held.set()
            near.close()
            ended.wait(BOUND)


def test_a_wait_without_a_bound_would_be_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    def forever(event: Any, timeout: float) -> None:
        while not event.done():
            time.sleep(0.01)

    hanging()
    monkeypatch.setattr(nccl, "_wait", forever)
    with pytest.raises(AssertionError):
        hanging()


@pytest.mark.parametrize(
    "frame",
    [
        pack(ROOM, 0, (MAX_PAYLOAD * 2).to_bytes(8, "big"), 0, 0),
        pack(ROOM, 0, (1).to_bytes(8, "big"), 0, 0),
        pack(ROOM, 0, bytes(64), 0, 0),
        pack(ROOM, 3, (1 << 20).to_bytes(8, "big"), 0, 0),
        pack(MEET, 0, b"again", 0, 0),
        pack(0, 2, b"a payload in a slot that is not there", 8, 0),
        pack(77, 0, b"", 0, 0),
    ],
    ids=["too much", "too little", "beyond counting", "no such slot", "met already", "no memory", "unknown"],
)
def test_what_a_peer_may_not_say_ends_the_connection(frame: bytes) -> None:
    with ends() as (near, far, _, _):
        near._stream.write(frame)
        with pytest.raises(TransferFailed):
            far.receive(BOUND)


def test_a_checksum_that_is_not_compared_would_be_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    mutate(monkeypatch, PairedChannel, "receive", "checksum != head.checksum", "False")
    with pytest.raises(AssertionError):
        test_frames_are_refused_when_their_bytes_changed_on_the_way_and_the_channel_goes_on()


def test_a_request_is_handed_over_through_it() -> None:
    requests = [
        request(f"r{number}", prompt(length, number), 12) for number, length in enumerate([5, 33, 70])
    ]
    with pair("nccl", blocks=(256, 256), more=lambda: {"nccl": transport(DoubleDevice())}) as both:
        both.start(*requests)
        for one in requests:
            assert both.home.output(one) == alone(one)
        both.rest()
        assert both.prefill.status().result(BOUND).handoffs == len(requests)


def test_requests_go_to_and_fro_over_it_between_blocks_of_all_sizes(full: bool) -> None:
    travelling(300 if full else 12, "nccl", more=lambda: {"nccl": transport(DoubleDevice())})


def break_after_the_first(then: Callable[[], None] = lambda: None) -> None:
    """Three requests in turn; the communicators break after the first. `then` comes before all ends."""
    devices: list[DoubleDevice] = []

    def more() -> dict[str, Transport]:
        devices.append(DoubleDevice())
        return {"nccl": transport(devices[-1])}

    with pair("nccl", blocks=(256, 256), more=more) as both:
        requests = [request(f"r{number}", prompt(33, number), 12) for number in range(3)]
        for number, one in enumerate(requests):
            both.start(one)
            assert both.home.output(one) == alone(one)
            both.rest()
            if number == 0:
                for device in devices:
                    for broken in device.pairs:
                        broken.abort()
        assert both.sender.handed == 2
        assert [len(device.pairs) for device in devices] == [1, 1]
        assert "NCCL" in " ".join(reason for _, reason in both.sender.failures)
        then()


def test_a_communicator_that_breaks_costs_its_movements_and_then_another_transport_is_taken() -> None:
    break_after_the_first()


def test_a_link_that_has_not_quite_ended_is_known_to_have_broken(monkeypatch: pytest.MonkeyPatch) -> None:
    """A movement may come when its thread takes none any more, and has not said so yet."""
    over, ended = threading.Event(), Peers._ended

    def late(self: Peers, instance: str, link: Link) -> None:
        assert over.wait(BOUND)
        ended(self, instance, link)

    monkeypatch.setattr(Peers, "_ended", late)
    try:
        break_after_the_first(over.set)
    finally:
        over.set()


def test_another_transport_is_taken_when_the_two_cannot_meet() -> None:
    devices: list[DoubleDevice] = []

    def broken() -> dict[str, Transport]:
        devices.append(DoubleDevice())
        devices[-1].joining.clear()
        return {"nccl": transport(devices[-1], HASTY)}

    with pair("auto", blocks=(256, 256), more=broken) as both:
        one = request("r", prompt(33), 12)
        both.start(one)
        assert both.home.output(one) == alone(one)
        both.rest()
        assert both.prefill.status().result(BOUND).handoffs == 1
    for device in devices:
        device.joining.set()
    for device in devices:
        device.joined()


def test_without_gpu_or_cupy_it_is_refused_with_the_reason() -> None:
    if obstacle() is None:
        pytest.skip("this machine has a GPU, cupy and NCCL")
    with pytest.raises(
        SetupError, match=r"transfer\.transport nccl: (cupy is not installed|there is no GPU)"
    ):
        NcclDevice()
