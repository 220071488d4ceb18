"""One port for several gateways of a machine: one listens, the others stand by and take over as it ends.

    first  ── holds the place ── listens ── killed ┐
    second ── waits at the place ─────────────────▶ holds the place ── listens

The place is an abstract unix socket: the kernel lets one process have it, tells those who are connected to it
when that one ends, however it ends, and leaves nothing behind.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import socket

WAITING = 64
"""Processes that may wait at one place."""


class Place:
    """What one of several processes has. `name` is hashed: it may hold a secret, so that no other cluster
    has the same."""

    def __init__(self, name: str) -> None:
        self._address = f"\0tandem-{hashlib.sha256(name.encode()).hexdigest()[:32]}"
        self._held: socket.socket | None = None

    def take(self) -> bool:
        """Have it from now on, if nobody else has."""
        place = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            place.bind(self._address)
        except OSError:
            place.close()
            return False
        place.listen(WAITING)
        self._held = place
        return True

    def leave(self) -> None:
        """Let another one have it."""
        if self._held is not None:
            self._held.close()
            self._held = None

    async def free(self) -> None:
        """Pends while somebody else has it."""
        with contextlib.suppress(ConnectionError):
            reader, writer = await asyncio.open_unix_connection(self._address)
            try:
                await reader.read()
            finally:
                writer.close()
