"""The last minutes of a pod: what runs in it finishes, or moves, before Ray is stopped.

pool      SIGTERM to the pod's instances, which then drain themselves; wait for their end
gateway   the Service sends nothing more; it closes idle connections and takes no request; wait for the others

Instances are those among the pod's own processes, and those that the controller of its cluster says run here:
of a cluster that is deleted the head's Service is gone at once, while its pods still have requests.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import platform
import re
import signal
import ssl
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from itertools import chain
from pathlib import Path

from cluster import control_pb2 as pb
from cluster.control_client import ControlClient
from cluster.leaving import leave
from cluster.tls import Tls
from engine.errors import TandemError

POLL = 0.5
SETTLE = 5.0
"""Seconds until every node knows that the pod is no endpoint of the Service any more."""
CALL_TIMEOUT = 5.0
PROCESSES = Path("/proc")
INSTANCE = re.compile(rb"ray::Worker\b")
"""What Ray names the process of an actor of the class `Worker`, with the method that it is in."""
IN_A_POD = "FQ_RAY_IP"
"""KubeRay sets it in each worker's pod. Elsewhere instances of this machine may be anybody's."""

Say = Callable[[str], object]


def leave_pool(address: str, token: str | None, deadline: float, say: Say, tls: Tls | None = None) -> None:
    """Drain the instances of this machine. `deadline` is in seconds."""
    end = time.monotonic() + deadline
    told: dict[int, str] = {}
    for pid, name in chain(_in_this_pod(), _known_here(address, token, say, tls)):
        if pid not in told:
            told[pid] = name
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGTERM)
                say(f"{name} drains")
    for pid, name in told.items():
        _wait_for_end(pid, name, end, say)


def leave_gateway(
    url: str,
    key: str | None,
    deadline: float,
    say: Say,
    address: str = "",
    token: str | None = None,
    tls: Tls | None = None,
) -> None:
    """Let the gateways of this machine take nothing more, and wait for what is under way.

    Where the controller at `address` does not say which they are, wait until the one at `url` is idle.
    `deadline` is in seconds.
    """
    end = time.monotonic() + deadline
    time.sleep(min(SETTLE, deadline))
    status = _status(address, token, say, tls) if address else None
    here = [one for one in status.gateways if one.node == platform.node()] if status else []
    left = max(0.0, end - time.monotonic())
    try:
        for name, under_way in asyncio.run(leave(here, token or "", left, tls)).items():
            say(f"{name}: {under_way} requests are lost" if under_way else f"{name} has ended its requests")
    except TandemError as error:
        say(f"a gateway does not say when it is done: {error}")
        here = []
    if not here:
        _wait_until_idle(url, key, end, say)


def _wait_until_idle(url: str, key: str | None, end: float, say: Say) -> None:
    while time.monotonic() < end:
        load = _load(url, key)
        if load is None or load == 0:
            say("no request is under way" if load == 0 else "the gateway does not answer any more")
            return
        time.sleep(POLL)
    say("the deadline is over: requests under way are lost")


def _in_this_pod() -> Iterator[tuple[int, str]]:
    """Pid and name of the instances among the processes of this pod."""
    if IN_A_POD not in os.environ:
        return
    for place in PROCESSES.iterdir():
        # One that has ended meanwhile has no command line any more.
        with contextlib.suppress(OSError):
            if place.name.isdecimal() and INSTANCE.match((place / "cmdline").read_bytes()):
                yield int(place.name), f"the instance with the process id {place.name}"


def _known_here(address: str, token: str | None, say: Say, tls: Tls | None) -> Iterator[tuple[int, str]]:
    """Pid and name of the instances that the controller knows on this machine."""
    status, here = _status(address, token, say, tls), platform.node()
    if status is not None:
        yield from ((one.pid, one.name) for one in status.instances if one.node == here and one.pid)


def _status(address: str, token: str | None, say: Say, tls: Tls | None) -> pb.ClusterStatus | None:
    try:
        with ControlClient(address, token, timeout=CALL_TIMEOUT, tls=tls) as client:
            return client.status()
    except TandemError as error:
        say(f"the controller does not say what runs here: {error.message}")
        return None


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
        with urllib.request.urlopen(request, timeout=CALL_TIMEOUT, context=_itself()) as answer:
            return int(json.load(answer)["server_load"])
    except (OSError, ValueError, KeyError, urllib.error.URLError):
        return None


def _itself() -> ssl.SSLContext:
    """Believes any certificate: that of this pod's own gateway has another name than the loopback address."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context
