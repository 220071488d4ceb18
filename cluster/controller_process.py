"""Everything that runs in the controller's process: the controller, its gRPC port and its admin port."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Mapping

import grpc

from cluster.admin_server import AdminServer
from cluster.applying import declare
from cluster.config import Config
from cluster.control import serve_control
from cluster.controller import Controller
from cluster.fleet import RayFleet
from cluster.installation import installed_version
from cluster.rpc import reachable

FAREWELL = 0.2


class ControllerProcess:
    """`begin` makes one that serves; `address` is host:port of its gRPC services."""

    def __init__(self, controller: Controller, server: grpc.aio.Server, address: str) -> None:
        self.address = reachable(address)
        self._controller = controller
        self._server = server
        self._admin = AdminServer(controller)

    @classmethod
    async def begin(cls, config: Config, origins: Mapping[str, str]) -> ControllerProcess:
        controller = Controller(config, RayFleet(config), version=installed_version())
        controller.origins = origins
        controller.leave = _end_process
        begun = cls(controller, *await serve_control(controller))
        try:
            await controller.start()
            begun._admin.start()
        except BaseException:
            await begun.close()
            raise
        return begun

    async def declare(self, settings: Mapping[str, object]) -> None:
        """Bring settings by dotted path into force. Raises ConfigError."""
        await declare(self._controller, settings)

    def check(self) -> None:
        """Raises when Serve should start another controller."""
        self._controller.check()

    async def close(self) -> None:
        await self._admin.close()
        await self._controller.close()
        await self._server.stop(None)


def _end_process() -> None:
    """Serve starts another controller, which adopts the instances; the answer to who asked leaves first."""
    asyncio.get_running_loop().call_later(FAREWELL, os._exit, 0)
