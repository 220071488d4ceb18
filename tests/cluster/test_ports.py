"""A port that a process takes again after it has died may not have gone to a connection meanwhile."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from cluster import ports


def taken(port: int) -> socket.socket:
    holder = socket.socket()
    holder.bind(("127.0.0.1", port))
    return holder


def test_it_is_below_those_of_connections_and_can_be_taken() -> None:
    lowest = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    for port in {ports.free_port() for _ in range(50)}:
        assert ports.LOWEST <= port < lowest
        taken(port).close()


def test_one_that_somebody_has_is_passed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    first = ports.free_port()
    monkeypatch.setattr(ports, "LOWEST", first)
    monkeypatch.setattr(ports, "_connections", lambda: first + 1)
    assert ports.free_port() == first
    with taken(first):
        assert ports.free_port() != first


def test_where_connections_have_all_ports_it_is_any(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    everything = tmp_path / "range"
    everything.write_text("1024\t65535\n")
    monkeypatch.setattr(ports, "CONNECTIONS", everything)
    taken(ports.free_port()).close()


def test_no_such_address() -> None:
    with pytest.raises(OSError, match="assign"):
        ports.free_port("192.0.2.1")
