"""One port for several gateways of a machine: one listens, the others stand by and take over as it ends.

    first  ── holds the place ── listens ── killed ┐
    second ── waits at the place ─────────────────▶ holds the place ── listens

The place is an abstract unix socket: the kernel lets one process have it, tells those who are connected to it
when that one ends, however it ends, and leaves nothing behind.
"""

from __future__ import annotations

import asyncio
import hashlib
import socket

WAITING = 64
"""Processes that may be told at once; more look again after each `PAUSE` seconds."""

PAUSE = 0.1


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
        """Pends while somebody else has it; may return early, so ask `take`."""
        waiting = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        waiting.setblocking(False)
        try:
            waiting.connect(self._address)
            # Nobody ever sends anything: this is the end of who has the place.
            await asyncio.get_running_loop().sock_recv(waiting, 1)
        except ConnectionError:
            return
        except BlockingIOError:  # too many wait already
            await asyncio.sleep(PAUSE)
        finally:
            waiting.close()
