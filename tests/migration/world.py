"""A world around the two halves of a session: a value, so that worlds seen before are recognised.

One request, one source, one destination, their home, FIFO links in between.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypeVar

from cluster.stream_order import Ownership
from engine.sequence import Epoch
from migration.destination import Destination
from migration.events import Bounds, Timeouts
from migration.messages import Copy
from migration.source import Source
from migration.successor import replace as successor

T = TypeVar("T")
BLOCKS = 2
EPOCH = Epoch(0, 0)
TIMES = Timeouts(reserve=2.0, commit=2.0, lease=3.0, stall=2.0, retry=1.0, resends=1)
UNCLAIMED = Ownership()
LIVE = Bounds(stages=2, last_blocks=1, pause=-1.0)


class Violation(AssertionError):
    """The world came to where it must never be."""


@dataclass(frozen=True)
class World:
    """`source_engine`: prefill, paused, running, gone. `asked`: claims at the home; `told`: its answers.

    `home` is what the home gateway decides with. `copy` is being sent, `question` waits for the source's
    engine; `total` blocks were frozen. `torn`: a choice has ended since then, or the whole request.
    """

    source: Source | None
    destination: Destination | None = None
    to_destination: tuple[Any, ...] = ()
    to_source: tuple[Any, ...] = ()
    source_engine: str = "prefill"
    computed: int = 0
    valid: bool = True
    torn: bool = False
    handoff: bool = True
    live: bool = False
    copy: Copy | None = None
    question: str = ""
    total: int = BLOCKS
    size: int = BLOCKS
    source_epoch: Epoch = EPOCH
    source_news: tuple[Any, ...] = ()
    destination_news: tuple[Any, ...] = ()
    asking: bool = False
    reserved: bool = False
    adopting: bool = False
    running: Epoch | None = None
    whole: bool = True
    landed: int = 0
    asked: tuple[tuple[str, Epoch], ...] = ()
    told: tuple[tuple[str, bool], ...] = ()
    home: Ownership = UNCLAIMED
    over: bool = False
    served: bool = False
    linked: bool = True
    stopping: bool = False
    budget: int = 0

    @property
    def owner(self) -> str:
        """Whom the home has the request from: the first source claims nothing."""
        return "another" if self.home.epoch.attempt else self.home.owner or "source"

    def heard(self, epoch: Epoch) -> bool:
        """Whether the home still takes what is drawn under this epoch."""
        return not self.over and self.home.bound(epoch, 0) is None

    def __hash__(self) -> int:
        """Worked out once: worlds are looked up several times."""
        known = self.__dict__.get("_hash")
        if known is None:
            known = self.__dict__["_hash"] = hash(tuple(self.__dict__.values()))
        return known  # type: ignore[no-any-return]


def replace(state: T, /, **changes: object) -> T:
    """A successor, whose hash is its own. `dataclasses.replace` would take half of all the time here."""
    after = successor(state, **changes)
    after.__dict__.pop("_hash", None)
    return after
