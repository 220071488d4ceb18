"""Transfers through NIXL between two processes, where it is installed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from engine.errors import SetupError, TransferFailed
from migration import nixl
from migration.nixl import bindings, nixl_transport
from migration.paired import SLOTS
from migration.tcp import TcpTransport
from tests.engine.toy import alone, prompt, request
from tests.migration.pair import BOUND, pair
from tests.migration.test_cut import travelling

ROOT = Path(__file__).resolve().parents[2]


def installed() -> bool:
    try:
        bindings()
    except SetupError:
        return False
    return True


needed = pytest.mark.skipif(
    not installed(), reason="NIXL is not installed: pip install 'tandem-serving[nixl]'"
)


def put(data: bytes) -> Any:
    def fill(view: memoryview) -> None:
        view[:] = data

    return fill


@contextmanager
def other_process() -> Iterator[tuple[Any, subprocess.Popen[str]]]:
    command = [sys.executable, "-m", "tests.migration.paired_peer", "nixl"]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        # NIXL logs to the standard output.
        address = next(line for line in process.stdout if line.startswith("127.0.0.1:")).strip()
        near = nixl_transport(TcpTransport(BOUND), BOUND).connect(address, BOUND)
        try:
            near.trust()
            yield near, process
        finally:
            near.close()
    finally:
        process.kill()
        process.wait(BOUND)
        process.stdout.close()


@needed
def test_payloads_reach_another_process_whole_and_in_order() -> None:
    with other_process() as (near, process):
        sizes = [1, 4095, 1 << 20, (1 << 20) + 1, 3 << 20, 7, 1 << 20]
        sent = [os.urandom(size) for size in sizes]
        for number, data in enumerate(sent):
            near.send(b"%d" % number, len(data), put(data))
        said = [near.receive(BOUND).header for _ in sent]
        assert said == [b"%d %d" % (number, zlib.crc32(data)) for number, data in enumerate(sent)]
        near.tamper = lambda view: view.__setitem__(0, view[0] ^ 1)
        near.send(b"bad", 8, put(b"12345678"))
        assert near.receive(BOUND).header == b"bad damaged"
        near.send(b"end")
        assert process.wait(BOUND) == 0


@needed
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSTOP])
def test_a_peer_that_is_gone_or_stands_still_ends_the_connection_in_time(how: signal.Signals) -> None:
    with other_process() as (near, process):
        near.send(b"first", 10, put(b"0123456789"))
        assert near.receive(BOUND) is not None
        near._timeout = 0.5
        process.send_signal(how)
        with pytest.raises(TransferFailed):
            send_without_end(near)


def send_without_end(channel: Any) -> None:
    for _ in range(10 * SLOTS):
        channel.send(b"", 10, put(b"0123456789"))


@needed
def test_a_request_is_handed_over_through_it() -> None:
    requests = [request(f"r{length}", prompt(length), 12) for length in (5, 33, 70)]

    def more() -> Any:
        return {"nixl": nixl_transport(TcpTransport(BOUND), BOUND)}

    with pair("nixl", blocks=(256, 256), more=more) as both:
        both.start(*requests)
        for one in requests:
            assert both.home.output(one) == alone(one)
        both.rest()
        assert both.prefill.status().result(BOUND).handoffs == len(requests)


@needed
def test_requests_go_to_and_fro_over_it_between_blocks_of_all_sizes(full: bool) -> None:
    travelling(300 if full else 12, "nixl", more=lambda: {"nixl": nixl_transport(TcpTransport(BOUND), BOUND)})


def test_where_it_is_missing_it_is_refused_with_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> Any:
        raise ModuleNotFoundError(f"No module named {name!r}")

    monkeypatch.setattr(nixl.importlib, "import_module", missing)
    with pytest.raises(SetupError, match=r"tandem-serving\[nixl\]"):
        nixl_transport(TcpTransport(1.0), 1.0)
