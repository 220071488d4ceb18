"""Who lives at an instance, and who of them is on the way out."""

from __future__ import annotations

import time
from concurrent.futures import Future
from dataclasses import replace

from engine.core import EngineCore
from engine.loop import EngineLoop
from engine.status import RequestStatus
from migration.sender import Sender


def residents(loop: EngineLoop, sender: Sender) -> Future[tuple[RequestStatus, ...]]:
    """A snapshot between two steps. Ages are by the clock of the wall, as `Request.arrival` is."""

    def look(core: EngineCore) -> tuple[RequestStatus, ...]:
        moving = sender.moving
        return tuple(replace(one, moving=one.request_id in moving) for one in core.requests(time.time()))

    return loop.call(look)
