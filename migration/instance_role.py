"""What an instance does in either role: everything about requests but the way they start."""

from __future__ import annotations

from concurrent.futures import Future
from dataclasses import replace
from typing import ClassVar

from engine.errors import Draining
from engine.loop import EngineLoop
from engine.status import InstanceStatus, RequestStatus
from migration.moved import Moved
from migration.receiver import Receiver
from migration.residents import residents
from migration.sender import Sender
from migration.transport import Address


class InstanceRole:
    """Composes loop, sender and receiver: the worker's, which keeps them when the role changes."""

    role: ClassVar[str]

    def __init__(self, name: str, loop: EngineLoop, sender: Sender, receiver: Receiver) -> None:
        self.name = name
        self._loop = loop
        self._sender = sender
        self._receiver = receiver
        self._draining = False

    def cancel(self, request_id: str) -> Future[bool]:
        """Drop a request and its movements, out of here or on its way in. True if it ran here."""
        self._sender.cancel(request_id)
        return self._receiver.cancel(request_id)

    def move(self, request_id: str, to: Address, reason: str) -> Future[Moved]:
        """Migrate a request that lives here, whatever it does, to another instance; see `Sender.move`."""
        return self._sender.move(request_id, to, reason)

    def requests(self) -> Future[tuple[RequestStatus, ...]]:
        """The requests that live here, between two steps."""
        return residents(self._loop, self._sender)

    def status(self) -> Future[InstanceStatus]:
        """A snapshot between two steps."""
        return self._loop.call(lambda core: replace(core.status(), instance=self.name, role=self.role))

    def drain(self) -> None:
        """Take no new requests, neither started here nor moved here; those that are here go on."""
        self._draining = True
        self._receiver.refuse()

    def undrain(self) -> None:
        """Take new requests again."""
        self._draining = False
        self._receiver.accept()

    def _refuse_when_draining(self) -> None:
        if self._draining:
            raise Draining(f"instance {self.name} takes no new requests: place it elsewhere")
