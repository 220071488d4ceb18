"""What a chaos run sees of processes: memory, handles, and what is left when it is over."""

from __future__ import annotations

import asyncio
import ctypes
import os
import platform
import socket
import subprocess
import sys
import tempfile
import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

import psutil
import pytest

from cluster import control_pb2 as pb
from cluster.chaos import footprint
from cluster.chaos.footprint import Footprint, Growth, Held, Life, growth
from cluster.chaos.handles import LINKS, Handles, handles, segments, strays
from cluster.chaos.scenario import Expect, Fault, Load, Scenario
from cluster.chaos.verdict import Aftermath, judge
from cluster.chaos.victims import Victim
from migration.shm import SLOTS, Segment
from tests.cluster.doubles import until

BOUND = 20.0


def held(*memory: int, start: float = 0.0) -> Life:
    every = [Held(start + 60.0 * number, size, 10 + number) for number, size in enumerate(memory)]
    return Life("decode-0", "decode", psutil.Process(), every)


def test_growth_is_the_slope_that_all_processes_of_a_kind_have_in_common() -> None:
    lives = [held(999, 1000, 2000, 3000, 4000), held(5, 50_000, 51_000, 52_000, start=900)]
    one = growth("decode", lives, 0, 1080)
    assert (one.slope, one.seconds, one.processes) == (pytest.approx(60_000), 300, 2)
    assert (one.memory, one.handles) == (52_000, 3)


def test_handles_are_those_of_whoever_lived_to_the_end_against_the_first_look_at_an_idle_cluster() -> None:
    def life(*seen: tuple[float, int, int]) -> Life:
        return Life("d", "decode", psutil.Process(), [Held(time, 0, *opened) for time, *opened in seen])

    dead = life((0, 50, 50), (100, 90, 90))
    old = life((0, 10, 30), (900, 12, 31))
    young = life((500, 3, 4), (900, 51, 57))
    assert handles_of(growth("decode", [dead, old, young], 0, 900)) == (2, 7)
    assert handles_of(growth("decode", [old, young], 0, 900)) == (41, 27)
    assert handles_of(growth("decode", [dead], 0, 900)) == (0, 0)
    assert handles_of(growth("gateway", [young], 0, 900)) == (48, 53)


def handles_of(one: Growth) -> tuple[int, int]:
    return one.handles, one.sockets


def test_two_looks_come_one_after_the_other_and_hide_no_leak(monkeypatch: pytest.MonkeyPatch) -> None:
    """The last look begins while one is under way, which has noted its time and seen nothing yet."""
    held_up, go_on, opened = threading.Event(), threading.Event(), 10

    def counted(pid: int) -> Handles:
        if threading.current_thread() is watcher:
            held_up.set()
            assert go_on.wait(BOUND)
        return Handles(opened, 0)

    monkeypatch.setattr(footprint, "handles", counted)
    found, here = Footprint(), [Victim("decode-0", "decode", os.getpid(), platform.node())]
    watcher, last = (threading.Thread(target=found.look, args=(here,)) for _ in range(2))
    found.begin(here)
    watcher.start()
    assert held_up.wait(BOUND)
    opened = 50
    last.start()
    last.join(0.2)  # it could be over if it did not wait
    go_on.set()
    watcher.join(BOUND)
    last.join(BOUND)
    assert {one.kind: one.handles for one in found.growths()}["decode"] == 40


def test_a_watch_is_over_when_its_last_look_is(monkeypatch: pytest.MonkeyPatch) -> None:
    begun, go_on, looked = threading.Event(), threading.Event(), []

    def slow(self: Footprint, victims: Sequence[Victim]) -> None:
        begun.set()
        assert go_on.wait(BOUND)
        looked.append(victims)

    monkeypatch.setattr(Footprint, "look", slow)

    async def ended() -> bool:
        watching = asyncio.create_task(Footprint().watch(list))
        await until(begun.is_set)
        watching.cancel()
        for _ in range(10):
            await asyncio.sleep(0)
        early = watching.done()
        go_on.set()
        await asyncio.wait([watching])
        return early

    assert not asyncio.run(ended())
    assert looked == [[]]


def test_too_little_was_seen_to_say_how_it_grows() -> None:
    assert growth("decode", [held(1, 2, 3)]).slope is None


def test_a_footprint_notices_a_process_that_should_be_gone_and_a_file_that_nobody_has_open() -> None:
    print_, place = Footprint(), Path("/dev/shm") / f"tandem-test-{os.getpid()}"
    with subprocess.Popen(["sleep", "60"]) as process:
        print_.look([Victim("decode-9", "decode", process.pid, platform.node())])
        place.write_bytes(b"x")
        try:
            left = asyncio.run(print_.left(pb.ClusterStatus(), 0.1))
        finally:
            place.unlink()
            process.kill()
    assert left == ["the process of decode-9", str(place)]
    assert print_.growths()[0].kind == "decode"
    assert asyncio.run(print_.left(pb.ClusterStatus())) == []


HOLDER = """
import os, sys
from migration.shm import Segment
if len(sys.argv) > 1:
    kept = [Segment.take(int(one), 1 << 20) for one in sys.argv[1:]]
else:
    segment, descriptor = Segment.create(1)
    os.close(descriptor)
print("ready", flush=True)
sys.stdin.read()
"""
ROOT = Path(__file__).parents[2]


@contextmanager
def holder(*descriptors: int) -> Iterator[int]:
    """A process that has the segments of these descriptors open, or one of its own; gives its id."""
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER, *map(str, descriptors)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT, pass_fds=descriptors,
    ) as process:  # fmt: skip
        assert process.stdout is not None
        assert process.stdin is not None
        assert process.stdout.readline() == "ready\n"
        yield process.pid
        process.stdin.close()


def instance(number: int, pid: int) -> pb.Instance:
    return pb.Instance(name=f"decode-{number}", role="decode", pid=pid, node=platform.node())


def left(*pids: int, before: tuple[int, ...] = ()) -> list[str]:
    """What a run leaves whose instances are these processes; `before` are those at its beginning."""
    known = pb.ClusterStatus(instances=[instance(number, pid) for number, pid in enumerate(pids)])
    found, here = Footprint(), platform.node()
    found.begin([Victim("decode-0", "decode", pid, here) for pid in before])
    found.look([Victim("decode-0", "decode", pid, here) for pid in pids])
    return asyncio.run(found.left(known, 0.2))


def test_mutant_a_process_that_leaks_a_segment_fails_the_run() -> None:
    with holder() as pid:
        found = left(pid)
    assert found == [f"a segment that process {pid} alone has open"]
    scenario = Scenario(name="x", load=Load(), faults=(Fault(kind="kill"),), expect=Expect(hit=0))
    told = judge(scenario, [], [], [], Aftermath(left=tuple(found)))
    assert f"left behind: a segment that process {pid} alone has open" in told.failures


def test_what_was_leaked_before_the_run_is_not_its_doing() -> None:
    with holder() as pid:
        assert left(pid, before=(pid,)) == []


def test_a_segment_that_two_processes_share_is_in_use() -> None:
    with ExitStack() as stack:
        segment, descriptor = Segment.create(1)
        stack.callback(segment.close)
        one, other = stack.enter_context(holder(descriptor)), stack.enter_context(holder(descriptor))
        os.close(descriptor)
        assert left(one, other) == []
        assert left(one) == [f"a segment that process {one} alone has open"]


def test_mutant_a_descriptor_that_its_process_forgot_to_close_is_a_leak() -> None:
    segment, descriptor = Segment.create(1)
    try:
        inode = os.fstat(descriptor).st_ino
        assert segments([os.getpid()])[inode] == Counter({os.getpid(): 2})
        assert "more than once" in strays({inode: Counter({os.getpid(): 2, 1: 1})})[inode]
        assert strays({inode: Counter({os.getpid(): 1, 1: 1})}) == {}
    finally:
        os.close(descriptor)
        segment.close()
    assert inode not in segments([os.getpid()])


def test_two_processes_share_no_more_segments_than_their_connections_have() -> None:
    most = LINKS * SLOTS
    found = {inode: Counter({7: 1, 8: 1}) for inode in range(most)}
    assert strays(found) == {}
    assert list(strays(found | {most: Counter({7: 1, 8: 1})})) == [most]
    assert strays(found | {most: Counter({7: 1, 9: 1})}) == {}


def test_a_segment_that_is_mapped_and_has_no_descriptor_is_found() -> None:
    descriptor = os.memfd_create("tandem-kv")
    os.ftruncate(descriptor, 4096)
    libc = ctypes.CDLL(None, use_errno=True)
    libc.mmap.restype = ctypes.c_void_p
    libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]
    libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
    inode, place = os.fstat(descriptor).st_ino, libc.mmap(None, 4096, 1, 1, descriptor, 0)
    os.close(descriptor)
    try:
        assert segments([os.getpid()])[inode] == Counter({os.getpid(): 1})
    finally:
        libc.munmap(place, 4096)
    assert inode not in segments([os.getpid()])


def test_handles_are_told_apart() -> None:
    before = handles(os.getpid())
    with socket.socket(), tempfile.TemporaryFile(), socket.socket():
        segment, descriptor = Segment.create(1)
        now = handles(os.getpid())
        os.close(descriptor)
        segment.close()
    assert (now.files, now.sockets) == (before.files + 1, before.sockets + 2)
    assert handles(os.getpid()) == before


def test_a_process_that_is_gone_has_nothing() -> None:
    with holder() as pid:
        assert segments([pid])
    assert segments([pid]) == {}
    with pytest.raises(OSError, match=str(pid)):
        handles(pid)
