"""Listens for HTTP or HTTPS on a port of its own, inside an event loop that has other things to do.

bound ─ serve ─▶ listens                          the only one, or the first of several on this machine
stands by ─ serve ─▶ waits for the first's end ─▶ listens                                        another
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import socket
import time
from collections.abc import Iterator

import uvicorn
from starlette.types import ASGIApp

from cluster.http_guard import Bounds, guarded
from cluster.standby import Place
from cluster.tls import Tls
from engine.errors import SetupError

CLOSE_PATIENCE = 2.0
"""Seconds that answers under way may take when a listener closes."""

BIND_PATIENCE = 5.0
"""Seconds that the port may take to be free after the end of who listened there."""

BIND_PAUSE = 0.01


class Listener:
    """A uvicorn server in the running event loop; its socket is bound before anything else is started."""

    def __init__(
        self,
        host: str,
        port: int,
        *,
        place: Place | None = None,
        tls: Tls | None = None,
        bounds: Bounds = Bounds(),
        setting: str = "gateway.port",
    ) -> None:
        """With a `place`, others on this machine may have the port: whoever has the place listens, the rest
        stand by. Without one, or for port 0, this one has a port for itself.

        Raises SetupError that names the port if it is taken, ConfigError for a certificate that is none.
        """
        self._tls = None if tls is None else tls.listening()
        self._bounds = bounds
        self._where = host, port, setting
        self._place = place if port else None
        self._socket = self._bind_at_once() if self._place is None or self._place.take() else None
        taken = port if self._socket is None else self._socket.getsockname()[1]
        name = f"[{host}]" if ":" in host else host
        self.url = f"{'http' if tls is None else 'https'}://{name}:{taken}"
        self._server: uvicorn.Server | None = None
        self._task: asyncio.Task[None] | None = None

    @property
    def standby(self) -> bool:
        """Whether another one listens on this machine."""
        return self._socket is None

    def serve(self, app: ASGIApp) -> None:
        """Listen, now or as soon as it is this one's turn."""
        config = uvicorn.Config(
            app,
            http=guarded(self._bounds),
            ws="none",
            log_config=None,
            access_log=False,
            server_header=False,
        )
        config.load()
        config.ssl = self._tls
        self._server = _Quiet(config)
        self._task = asyncio.create_task(self._listen(self._server), name="http")

    def check(self) -> None:
        """Raises SetupError if it neither listens nor stands by."""
        if self._task is not None and self._task.done():
            raise SetupError(f"nothing listens at {self.url} any more", param=self._where[2])

    async def close(self, within: float = CLOSE_PATIENCE) -> None:
        """Accept nothing more, so that who stands by takes the port; answers may end, `within` seconds."""
        if self._server is not None and self._task is not None:
            self._server.config.timeout_graceful_shutdown = math.ceil(within)
            self._server.should_exit = True
            for listening in getattr(self._server, "servers", ()):  # there are none until it has begun
                listening.close()
            self._leave()
            if self.standby:
                self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        if self._socket is not None:
            self._socket.close()
        self._leave()

    async def _listen(self, server: uvicorn.Server) -> None:
        if self._socket is None:
            assert self._place is not None
            while not self._place.take():
                await self._place.free()
            self._socket = await self._bind_soon()
        await server.serve(sockets=[self._socket])

    async def _bind_soon(self) -> socket.socket:
        """The port is free a moment after the place, which is kept meanwhile."""
        end = time.monotonic() + BIND_PATIENCE
        while time.monotonic() < end:
            with contextlib.suppress(SetupError):
                return _bind(*self._where)
            await asyncio.sleep(BIND_PAUSE)
        return self._bind_at_once()

    def _bind_at_once(self) -> socket.socket:
        try:
            return _bind(*self._where)
        except SetupError:
            self._leave()
            raise

    def _leave(self) -> None:
        if self._place is not None:
            self._place.leave()


class _Quiet(uvicorn.Server):
    """Leaves the process's signals alone: they are Ray's."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def _bind(host: str, port: int, setting: str) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    taken = socket.socket(family, socket.SOCK_STREAM)
    taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        taken.bind((host, port))
    except OSError as error:
        taken.close()
        raise SetupError(
            f"{host}:{port} cannot be listened on ({error.strerror}): choose another {setting}",
            param=setting,
        ) from error
    taken.listen(2048)
    taken.setblocking(False)
    return taken
