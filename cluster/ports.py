"""Ports that a process can take, and that it can take again when it has been started anew."""

from __future__ import annotations

import secrets
import socket
from pathlib import Path

LOWEST = 20_000
"""Ray's workers take ports below it."""
CONNECTIONS = Path("/proc/sys/net/ipv4/ip_local_port_range")
TRIES = 100


def free_port(host: str = "127.0.0.1") -> int:
    """A port below those that the kernel gives to connections: none of them can have it when it is wanted
    again. Any free one where that cannot be had."""
    room = _connections() - LOWEST
    for _ in range(TRIES if room > 0 else 0):
        port = LOWEST + secrets.randbelow(room)
        if _taken(host, port) is not None:
            return port
    anyone = _taken(host, 0)
    assert anyone is not None
    return anyone


def _connections() -> int:
    """The lowest port that the kernel gives to connections; Linux's default where it does not say."""
    try:
        return int(CONNECTIONS.read_text().split()[0])
    except (OSError, ValueError, IndexError):
        return 32_768


def _taken(host: str, port: int) -> int | None:
    """The port if it could be taken, and is free again; None if somebody has it. Raises OSError otherwise."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        try:
            probe.bind((host, port))
        except OSError:
            if port == 0:
                raise
            return None
        return int(probe.getsockname()[1])
