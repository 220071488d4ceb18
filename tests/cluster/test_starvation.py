"""Processes that wait for a CPU, for nothing, or not at all."""

from __future__ import annotations

import os
import platform
import signal
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest

from cluster.starvation import Starvation

VFORK = """
import ctypes, os, time
libc = ctypes.CDLL(None)
if libc.syscall(58) == 0:
    os.write(1, b"%d\\n" % os.getpid())
    libc.sleep(60)
    os._exit(0)
"""

SPIN = "print(flush=True)\nwhile True: pass"


@pytest.fixture
def crowd() -> Iterator[list[subprocess.Popen[bytes]]]:
    """Six busy processes on one CPU: each waits for five sixths of the time."""
    cpu = min(os.sched_getaffinity(0))
    crowd = [
        subprocess.Popen(
            [sys.executable, "-c", f"import os\nos.sched_setaffinity(0, {{{cpu}}})\n{SPIN}"],
            stdout=subprocess.PIPE,
        )
        for _ in range(6)
    ]
    try:
        for one in crowd:
            assert one.stdout is not None
            one.stdout.readline()
        yield crowd
    finally:
        for one in crowd:
            one.kill()
            one.communicate()


def share(pid: int, seconds: float) -> float:
    """Of some time, for how much a process was starved."""
    starved, begun = Starvation(lambda: [pid]), time.monotonic()
    starved(0.0)
    time.sleep(seconds)
    passed = time.monotonic() - begun
    return starved(passed) / passed


def test_a_starved_process_has_waited_and_a_stopped_one_has_not(crowd: list[subprocess.Popen[bytes]]) -> None:
    assert share(crowd[0].pid, 0.6) > 0.4
    crowd[0].send_signal(signal.SIGSTOP)
    os.waitid(os.P_PID, crowd[0].pid, os.WSTOPPED | os.WNOWAIT)
    assert share(crowd[0].pid, 0.3) < 0.1


@pytest.mark.skipif(platform.machine() != "x86_64", reason="the number of vfork is another one")
def test_one_that_waits_for_a_disk_is_starved() -> None:
    """A parent that has forked with vfork waits as one does that waits for a disk: state D."""
    parent = subprocess.Popen([sys.executable, "-c", VFORK], stdout=subprocess.PIPE)
    assert parent.stdout is not None
    child = int(parent.stdout.readline())
    try:
        assert share(parent.pid, 0.2) > 0.9
    finally:
        os.kill(child, signal.SIGKILL)
        parent.communicate()


def test_of_a_process_that_is_not_there_nothing_is_known() -> None:
    assert share(2**22 + 1, 0.0) == 0.0
