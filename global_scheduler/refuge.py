"""Where a request goes that has to leave its instance: to the freest one of its role that takes requests."""

from __future__ import annotations

from collections.abc import Iterable

from global_scheduler.freeness import freeness
from global_scheduler.view import Load


def refuge(loads: Iterable[Load], source: str, role: str, tokens: int) -> Load | None:
    """The freest instance of `role` but `source` with blocks for `tokens` tokens; None if there is none.

    Unlike rescheduling it asks for no margin: whoever has to leave is better off anywhere than nowhere.
    """
    open_to = [
        load
        for load in loads
        if load.instance != source
        and load.role == role
        and not load.cordoned
        and not load.stale
        and load.free >= load.blocks_for(tokens)
    ]
    return max(open_to, key=lambda load: (freeness(load, hold=tokens), load.instance), default=None)
