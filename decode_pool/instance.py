"""An instance in its role of writing answers: requests are moved here, or start here when short."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future

from engine.core import EngineCore
from engine.request import Request
from engine.sequence import Epoch
from engine.sequence import Sequence as LiveSequence
from migration.instance_role import InstanceRole


class DecodeInstance(InstanceRole):
    """Starts requests here that stay here."""

    role = "decode"

    def start(
        self, request: Request, choices: Sequence[LiveSequence], epoch: Epoch, home: str
    ) -> Future[None]:
        """Run a request here from its prompt on.

        Done when it is in the queue, or with what the engine refuses it with; Draining after `drain`.
        `choices` are the unfinished ones of a recovered request, () for one that starts afresh.
        """

        def enter(core: EngineCore) -> None:
            self._refuse_when_draining()
            core.submit(request, choices=choices, epoch=epoch, home=home)

        return self._loop.call(enter)
