"""The last minutes of a pod: what runs in it finishes, or moves, before Ray is stopped.

pool      SIGTERM to the pod's instances, which then drain themselves; wait for their end
gateway   the Service sends nothing more; wait until no request is under way
"""

from __future__ import annotations

import contextlib
import json
import os
import platform
import signal
import time
import urllib.error
import urllib.request
from collections.abc import Callable

from cluster.control_client import ControlClient
from cluster.tls import Tls
from engine.errors import TandemError

POLL = 0.5
SETTLE = 5.0
"""Seconds until every node knows that the pod is no endpoint of the Service any more."""
CALL_TIMEOUT = 5.0

Say = Callable[[str], object]


def leave_pool(address: str, token: str | None, deadline: float, say: Say, tls: Tls | None = None) -> None:
    """Drain the instances of this machine. `deadline` is in seconds."""
    end = time.monotonic() + deadline
    found = _instances(address, token, say, tls)
    for pid, name in found:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.kill(pid, signal.SIGTERM)
            say(f"{name} drains")
    for pid, name in found:
        _wait_for_end(pid, name, end, say)


def leave_gateway(url: str, key: str | None, deadline: float, say: Say) -> None:
    """Wait until the gateway at `url` has no request under way, at most `deadline` seconds."""
    end = time.monotonic() + deadline
    time.sleep(min(SETTLE, deadline))
    while time.monotonic() < end:
        load = _load(url, key)
        if load is None or load == 0:
            say("no request is under way" if load == 0 else "the gateway does not answer any more")
            return
        time.sleep(POLL)
    say("the deadline is over: requests under way are lost")


def _instances(address: str, token: str | None, say: Say, tls: Tls | None) -> list[tuple[int, str]]:
    """Pid and name of the instances on this machine."""
    try:
        with ControlClient(address, token, timeout=CALL_TIMEOUT, tls=tls) as client:
            status = client.status()
    except TandemError as error:
        say(f"the controller does not say what runs here: {error.message}")
        return []
    here = platform.node()
    return [(one.pid, one.name) for one in status.instances if one.node == here and one.pid]


def _wait_for_end(pid: int, name: str, end: float, say: Say) -> None:
    while time.monotonic() < end:
        if not _alive(pid):
            say(f"{name} has ended")
            return
        time.sleep(POLL)
    say(f"the deadline is over: {name} is still there")


def _alive(pid: int) -> bool:
    """Whether a process runs; a zombie, which nobody has waited for yet, does not."""
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as file:
            return file.read().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def _load(url: str, key: str | None) -> int | None:
    """Requests under way; None if nobody answers."""
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    request = urllib.request.Request(f"{url}/load", headers=headers)
    try:
        with urllib.request.urlopen(request, timeout=CALL_TIMEOUT) as answer:
            return int(json.load(answer)["server_load"])
    except (OSError, ValueError, KeyError, urllib.error.URLError):
        return None
