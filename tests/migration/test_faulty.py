"""Links that are slow, late, cut or damaged cost time and retries, never a token."""

from __future__ import annotations

import random
import time

import pytest

from engine.errors import InvalidParameter
from migration.faulty import Fault, Faults, FaultyTransport
from migration.session import Bounds
from tests.engine.toy import prompt, request
from tests.migration.mesh import Itinerary, Mesh, mesh
from tests.migration.pair import BOUND, transports

BOTH = pytest.mark.parametrize("forced", ["shm", "tcp"])
PACE = 0.004


def afflicted(faults: Faults) -> dict[str, object]:
    return {"wrap": lambda inner: FaultyTransport(inner, faults)}


def test_a_specification_is_read() -> None:
    assert Fault.parse("delay=20ms rate=10Mi damage=0.05 cut=1") == Fault(0.02, 10 * 2**20, 0.05, 1.0)
    assert Fault.parse("") == Fault()


@pytest.mark.parametrize(
    "spec", ["delay=20", "rate=1ms", "burn=1", "damage=2", "cut", "delay=-1s", "cut=nan"]
)
def test_what_is_no_fault_is_refused(spec: str) -> None:
    with pytest.raises(InvalidParameter):
        Fault.parse(spec)


@BOTH
def test_a_payload_is_damaged_after_its_checksum_was_taken(forced: str) -> None:
    faults = Faults()
    transport = FaultyTransport(transports()[forced], faults)
    listener = transport.listen("127.0.0.1:0" if forced == "tcp" else "")
    near = transport.connect(listener.address, BOUND)
    far = listener.accept()
    for channel in (near, far):
        channel.trust()
    faults.set("damage=1")
    near.send(b"header", 4096)
    hurt = far.receive(BOUND)
    faults.set("")
    near.send(b"header", 4096)
    sound = far.receive(BOUND)
    assert hurt is not None
    assert sound is not None
    assert (hurt.header, hurt.payload) == (b"header", None)
    assert sound.payload is not None
    assert len(sound.payload) == 4096
    for frame in (hurt, sound):
        frame.release()
    for end in (near, far, listener):
        end.close()


@pytest.mark.parametrize("spec", ["delay=50ms", "rate=100Ki"])
def test_a_slow_link_takes_its_time(spec: str) -> None:
    faults = Faults()
    transport = FaultyTransport(transports()["tcp"], faults)
    listener = transport.listen("127.0.0.1:0")
    near = transport.connect(listener.address, BOUND)
    faults.set(spec)
    start = time.monotonic()
    near.send(b"header", 5120)
    assert time.monotonic() - start >= 0.05
    for end in (near, listener):
        end.close()


@BOTH
def test_chunks_that_are_damaged_again_and_again_leave_the_request_where_it_is(forced: str) -> None:
    faults = Faults()
    with mesh(forced, pace=PACE, **afflicted(faults)) as all_:
        one = request("r", prompt(33), 80)
        all_.start("d0", one)
        all_.until(one, 3)
        faults.set("damage=1")
        moved = all_.moved(one, "d0", "d1")
        assert "damaged" in moved.outcome
        assert faults.damaged == 3
        faults.set("")
        assert all_.moved(one, "d0", "d1").committed
        all_.served(one)


@BOTH
def test_a_cut_leaves_the_request_where_it_is_and_the_next_move_connects_again(forced: str) -> None:
    faults = Faults()
    with mesh(forced, pace=PACE, **afflicted(faults)) as all_:
        one = request("r", prompt(33), 80)
        all_.start("d0", one)
        all_.until(one, 3)
        faults.set("cut=1")
        assert not all_.moved(one, "d0", "d1").committed
        faults.set("")
        assert all_.moved(one, "d0", "d1").committed
        all_.served(one)


def test_streams_are_the_same_whatever_the_links_do(full: bool) -> None:
    faults = Faults(seed=5)
    rng = random.Random(5)
    bounds = Bounds(moves=32, last_blocks=2)
    with mesh("tcp", pace=PACE, blocks=512, bounds=bounds, max_sessions=32, **afflicted(faults)) as all_:
        itinerary = Itinerary(all_)
        for number in range(100 if full else 24):
            start(all_, itinerary, rng, number)
        faults.set("delay=1ms damage=0.1 cut=0.02")
        requests = list(itinerary.requests)
        all_.served(*requests)
        outcomes = itinerary.outcomes()
        assert faults.damaged
        assert any(moved.committed for moved in outcomes)
        faults.set("")


def start(all_: Mesh, itinerary: Itinerary, rng: random.Random, number: int) -> None:
    one = request(f"r{number}", prompt(rng.randrange(1, 70), number), 60, n=rng.choice([1, 1, 3]))
    itinerary.plan(one, [(tokens, rng.choice(list(all_.nodes))) for tokens in (2, 15, 30)])
    all_.start(rng.choice(list(all_.nodes)), one)
