"""An instance in its role of writing answers: requests are moved here, or start here when short."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import replace

from engine.core import EngineCore
from engine.errors import Draining
from engine.loop import EngineLoop
from engine.request import Request
from engine.sequence import Epoch
from engine.sequence import Sequence as LiveSequence
from engine.status import InstanceStatus
from migration.receiver import Receiver


class DecodeInstance:
    """Composes loop and receiver; both belong to the worker, which keeps them when the role changes."""

    role = "decode"

    def __init__(self, name: str, loop: EngineLoop, receiver: Receiver) -> None:
        self.name = name
        self._loop = loop
        self._receiver = receiver
        self._draining = False

    def start(
        self, request: Request, choices: Sequence[LiveSequence], epoch: Epoch, home: str
    ) -> Future[None]:
        """Run a request here from its prompt on.

        Done when it is in the queue, or with what the engine refuses it with; Draining after `drain`.
        `choices` are the unfinished ones of a recovered request, () for one that starts afresh.
        """

        def enter(core: EngineCore) -> None:
            if self._draining:
                raise Draining(f"instance {self.name} takes no new requests: place it elsewhere")
            core.submit(request, choices=choices, epoch=epoch, home=home)

        return self._loop.call(enter)

    def cancel(self, request_id: str) -> Future[bool]:
        """Drop a request, on its way in or running. True if it ran here."""
        return self._receiver.cancel(request_id)

    def status(self) -> Future[InstanceStatus]:
        """A snapshot between two steps."""
        return self._loop.call(lambda core: replace(core.status(), instance=self.name, role=self.role))

    def drain(self) -> None:
        """Take no new requests, neither started here nor moved here; those that are here go on."""
        self._draining = True
        self._receiver.refuse()
