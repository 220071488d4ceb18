"""Listens for HTTP or HTTPS on a port of its own, inside an event loop that has other things to do."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Iterator

import uvicorn
from starlette.types import ASGIApp

from cluster.http_guard import Bounds, guarded
from cluster.tls import Tls
from engine.errors import SetupError


class Listener:
    """A uvicorn server in the running event loop; its socket is bound before anything else is started."""

    def __init__(
        self, host: str, port: int, *, others: bool, tls: Tls | None = None, bounds: Bounds = Bounds()
    ) -> None:
        """`others`: replicas on this machine may have taken the port; then any free one will do.

        Raises SetupError that names the port if it is taken, ConfigError for a certificate that is none.
        """
        self._tls = None if tls is None else tls.listening()
        self._bounds = bounds
        self._socket = _bind(host, port, others=others)
        name = f"[{host}]" if ":" in host else host
        self.url = f"{'http' if tls is None else 'https'}://{name}:{self._socket.getsockname()[1]}"
        self._server: uvicorn.Server | None = None
        self._task: asyncio.Task[None] | None = None

    def serve(self, app: ASGIApp) -> None:
        config = uvicorn.Config(
            app,
            http=guarded(self._bounds),
            ws="none",
            log_config=None,
            access_log=False,
            server_header=False,
            timeout_graceful_shutdown=2,
        )
        config.load()
        config.ssl = self._tls
        self._server = _Quiet(config)
        self._task = asyncio.create_task(self._server.serve(sockets=[self._socket]), name="http")

    async def close(self) -> None:
        if self._server is not None and self._task is not None:
            self._server.should_exit = True
            await asyncio.gather(self._task, return_exceptions=True)
        self._socket.close()


class _Quiet(uvicorn.Server):
    """Leaves the process's signals alone: they are Ray's."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def _bind(host: str, port: int, *, others: bool) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    taken = socket.socket(family, socket.SOCK_STREAM)
    taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        taken.bind((host, port))
    except OSError as error:
        taken.close()
        if others and port:
            return _bind(host, 0, others=False)
        raise SetupError(
            f"{host}:{port} cannot be listened on ({error.strerror}): choose another gateway.port",
            param="gateway.port",
        ) from error
    taken.listen(2048)
    taken.setblocking(False)
    return taken
