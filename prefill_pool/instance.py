"""An instance in its role of reading prompts: what decodes elsewhere is handed over while it is read."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future

from engine.core import EngineCore
from engine.request import Request
from engine.sequence import Epoch
from engine.sequence import Sequence as LiveSequence
from migration.instance_role import InstanceRole
from migration.transport import Address


class PrefillInstance(InstanceRole):
    """Starts requests here, each with the instance that will decode it."""

    role = "prefill"

    def start(
        self,
        request: Request,
        choices: Sequence[LiveSequence],
        epoch: Epoch,
        home: str,
        decode: Address | None,
    ) -> Future[None]:
        """Run a request, and hand it over to `decode` unless that is None or this instance.

        Done when the request is in the queue, or with what the engine refuses it with; Draining after
        `drain`. `choices` are the unfinished ones of a recovered request, () for one that starts afresh.
        """
        elsewhere = None if decode is None or decode.instance == self.name else decode

        def enter(core: EngineCore) -> None:
            self._refuse_when_draining()
            core.submit(request, choices=choices, epoch=epoch, home=home, handoff=elsewhere is not None)
            if elsewhere is not None:
                self._sender.hand_off(request, elsewhere, epoch=epoch, home=home, choices=choices)

        return self._loop.call(enter)
