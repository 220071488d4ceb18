"""Serves the admin port beside the controller: the API, the console on it, and the samples for its graphs."""

from __future__ import annotations

from cluster.admin import build_admin
from cluster.admin_auth import Gate
from cluster.admin_service import AdminService
from cluster.console.pages import mount_console
from cluster.controller import Controller
from cluster.http_listener import Listener
from cluster.rpc import reachable
from cluster.tls import http_tls


class AdminServer:
    """Listens at admin.host and admin.port. Raises SetupError if the port is taken."""

    def __init__(self, controller: Controller) -> None:
        config = controller.config
        settings = config.admin
        tls = http_tls(config.security.admin_tls, "security.admin_tls")
        self._listener = Listener(settings.host, settings.port, tls=tls, setting="admin.port")
        self.service = AdminService(controller)
        gate = Gate(settings.token or "", settings.session)
        self.app = build_admin(self.service, gate)
        mount_console(self.app, gate, settings.token or "", secure=tls is not None)
        controller.admin = reachable(self._listener.url)

    def start(self) -> None:
        self.service.start()
        self._listener.serve(self.app)

    async def close(self) -> None:
        await self._listener.close()
        await self.service.close()
