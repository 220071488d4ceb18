"""A small world around the two halves of a session, and every order in which things can happen in it.

One request, one source, one destination, their home, FIFO links in between. Each half has a clock of its
own that may run ahead at any time. Faults come out of a budget. A world is a value, so that worlds that
were seen before are recognised. The request is handed over, with two blocks of prompt, or it is migrated
while it runs and grows to `size` full blocks and one that is being written.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, TypeVar

from engine.sequence import Epoch
from migration.destination import Destination
from migration.events import (
    Adopt,
    Adopted,
    Allocate,
    Allocated,
    Begin,
    Bounds,
    Cancelled,
    Claim,
    Claimed,
    Damaged,
    Denied,
    Drop,
    Dropped,
    Free,
    Freeze,
    Frozen,
    Look,
    Lost,
    Progress,
    Release,
    Resume,
    Scatter,
    Sent,
    Tick,
    Timeouts,
)
from migration.messages import Abort, Commit, Copy, Refused, Reserve, Reserved
from migration.source import Source, SourceState
from migration.successor import replace as successor

T = TypeVar("T")
BLOCKS = 2
EPOCH = Epoch(0, 0)
TIMES = Timeouts(reserve=2.0, commit=2.0, lease=3.0, stall=2.0, retry=1.0, resends=1)
LIVE = Bounds(stages=2, last_blocks=1, pause=-1.0)


class Violation(AssertionError):
    """The world came to where it must never be."""


@dataclass(frozen=True)
class World:
    """`source_engine`: prefill, paused, running, gone. `asked`: claims at the home; `told`: its answers.

    `copy` is being sent, `question` waits for the source's engine; `total` blocks were frozen.
    """

    source: Source | None
    destination: Destination | None = None
    to_destination: tuple[Any, ...] = ()
    to_source: tuple[Any, ...] = ()
    source_engine: str = "prefill"
    computed: int = 0
    valid: bool = True
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
    epoch: Epoch = EPOCH
    owner: str = "source"
    over: bool = False
    served: bool = False
    linked: bool = True
    stopping: bool = False
    budget: int = 0

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


@dataclass
class Rules:
    """What may be swapped for a wrong variant."""

    source: type[Source] = Source
    destination: type[Destination] = Destination
    faults: frozenset[str] = frozenset(
        {"lose", "repeat", "cut", "cancel", "no room", "preempt", "end", "kill source", "kill destination",
         "no answer", "adopt fails", "home away", "damage", "stop string"}
    )  # fmt: skip
    labels: set[str] = field(default_factory=set)

    def begin(self, budget: int) -> World:
        return self._source(World(self.source(EPOCH, TIMES), budget=budget), Begin(BLOCKS))

    def begin_live(self, budget: int, blocks: int, size: int = 1) -> World:
        """A request that runs, or without `blocks` one that waits still. It grows to `size` full blocks."""
        source = self.source(EPOCH, TIMES, LIVE)
        world = World(source, source_engine="running", handoff=False, live=True, size=size, budget=budget)
        return self._source(world, Begin(blocks))

    # Feeding the halves.

    def _source(self, world: World, event: Any) -> World:
        source = world.source
        if source is None or source.ended:
            return world
        after, actions = source.on(event, 0.0)
        world = replace(world, source=after)
        for action in actions:
            match action:
                case Claim(epoch):
                    world = replace(world, asked=(*world.asked, ("source", epoch)))
                case Resume(epoch):
                    world = self._resume(world, epoch)
                case Release():
                    world = self._release(world)
                case Copy():
                    world = replace(world, copy=action)
                case Look():
                    world = replace(world, question="look")
                case Freeze():
                    world = replace(world, question="freeze")
                case _:
                    world = self._to_destination(world, action)
        return world

    def _destination(self, world: World, event: Any) -> World:
        destination = world.destination
        if destination is None:
            return world
        after, actions = destination.on(event, 0.0)
        return self._do(replace(world, destination=after), actions)

    def _do(self, world: World, actions: tuple[Any, ...]) -> World:
        for action in actions:
            match action:
                case Allocate():
                    world = replace(world, asking=True)
                case Claim(epoch):
                    world = replace(world, asked=(*world.asked, ("destination", epoch)))
                case Scatter() | Adopt() if not world.reserved:
                    raise Violation(f"{action} without a reservation")
                case Scatter(first, count):
                    world = replace(world, landed=first + count)
                case Adopt():
                    world = replace(world, adopting=True)
                case Free():
                    if not world.reserved:
                        raise Violation("freed what is not reserved")
                    world = replace(world, reserved=False)
                case Drop():
                    world = replace(world, destination_news=(*world.destination_news, "drop"))
                case _ if world.linked:
                    world = replace(world, to_source=(*world.to_source, action))
        return world

    def _to_destination(self, world: World, message: Any) -> World:
        if not world.linked:
            return world
        return replace(world, to_destination=(*world.to_destination, message))

    def _resume(self, world: World, epoch: Epoch) -> World:
        if world.source_engine == "gone":
            return world
        world = replace(world, handoff=False, source_epoch=epoch)
        return replace(world, source_engine="running") if world.source_engine == "paused" else world

    def _release(self, world: World) -> World:
        if world.source_engine not in ("paused", "gone"):
            raise Violation(f"released while {world.source_engine}")
        return replace(world, source_engine="gone")

    # What can happen. Each yields (label, world, is it a fault).

    def moves(self, world: World) -> Iterator[tuple[str, World, bool]]:
        yield from self._engine(world)
        yield from self._links(world)
        yield from self._local(world)
        yield from self._home(world)
        yield from self._clocks(world)
        if world.budget:
            for label, after in self._faults(replace(world, budget=world.budget - 1)):
                if label in self.faults:
                    yield label, after, True

    def _engine(self, world: World) -> Iterator[tuple[str, World, bool]]:
        if world.source_engine == "prefill":
            computed = world.computed + 1
            if computed < BLOCKS:
                yield "chunk", self._report(replace(world, computed=computed, valid=True)), False
            else:
                mode = "paused" if world.handoff else "running"
                done = replace(world, computed=computed, source_engine=mode, valid=True)
                yield "prefilled", self._report(done), False
        for side, epoch in (("source", world.source_epoch), ("destination", world.running)):
            if (side == "source" and world.source_engine != "running") or epoch is None:
                continue
            stopped = self._stop(world, side)
            if epoch == world.epoch and world.owner == side and not world.over:
                if side == "destination" and (not world.whole or world.landed < world.total):
                    raise Violation("it runs on KV that is not there or that the source had dropped")
                yield f"{side} serves", replace(stopped, over=True, served=True), False
            else:
                yield f"{side} is fenced", stopped, False

        if world.live and world.source is not None and not world.source.ended:
            yield from self._live(world)

    def _live(self, world: World) -> Iterator[tuple[str, World, bool]]:
        """The request runs on at its source, which answers between two steps."""
        if world.source_engine == "running" and world.computed < world.size:
            yield "grows", replace(world, computed=world.computed + 1), False
        if world.question:
            answer: Any = Progress(world.computed, 1)
            heard = replace(world, question="")
            if world.source_engine == "gone":
                answer = Dropped()
            elif world.question == "freeze":
                answer = Frozen(world.computed + 1)
                heard = replace(heard, source_engine="paused", total=world.computed + 1)
            yield "answer", replace(heard, source_news=(*heard.source_news, answer)), False

    def _stop(self, world: World, side: str) -> World:
        if side == "destination":
            return replace(world, running=None)
        news = (*world.source_news, Dropped()) if world.live else world.source_news
        return replace(world, source_engine="gone", source_news=news)

    def _report(self, world: World) -> World:
        """As the driver does: what is final, as soon as the session can use it, behind older news."""
        if world.source_news:
            return replace(world, source_news=(*world.source_news, "report"))
        return self._tell(world)

    def _tell(self, world: World) -> World:
        source = world.source
        if source is None or not world.handoff:
            return world
        if source.state not in (SourceState.COPYING, SourceState.FROZEN):
            return world
        frozen = world.source_engine == "paused"
        return self._source(world, Frozen(BLOCKS) if frozen else Progress(world.computed))

    def _links(self, world: World) -> Iterator[tuple[str, World, bool]]:
        if world.to_destination:
            message, rest = world.to_destination[0], world.to_destination[1:]
            yield "to destination", self._arrive(replace(world, to_destination=rest), message), False
        if world.to_source:
            message, rest = world.to_source[0], world.to_source[1:]
            after = self._source(replace(world, to_source=rest), message)
            yield "to source", self._report(after) if isinstance(message, Reserved) else after, False
        if world.copy is not None and world.source is not None and not world.source.ended:
            copied, first = replace(world, copy=None), world.copy.first
            for block in range(first, first + world.copy.count):
                copied = self._to_destination(copied, (Copy(block, 1), world.valid, True))
            yield "sent", self._source(copied, Sent()), False

    def _arrive(self, world: World, message: Any) -> World:
        destination = world.destination
        if isinstance(message, Reserve):
            if destination is None:
                begun, actions = self.destination.begin(EPOCH, TIMES, message.blocks)
                return self._do(replace(world, destination=begun), actions)
            if destination.ended:
                return self._answer(world, Refused("stale", "", settled=False))
            return self._destination(world, message)
        if destination is None or destination.ended:
            if isinstance(message, Commit):
                return self._answer(world, Refused("unknown", "", settled=False))
            return world if isinstance(message, Abort) else self._answer(world, Abort("unknown"))
        if isinstance(message, tuple):
            copy, valid, intact = message
            if not intact:
                return self._destination(world, Damaged())
            after = self._destination(replace(world, whole=world.whole and valid), copy)
            if after.landed != world.landed and destination.received != copy.first:
                raise Violation("a chunk was put where another belongs")
            return after
        return self._destination(world, message)

    def _answer(self, world: World, message: Any) -> World:
        return replace(world, to_source=(*world.to_source, message)) if world.linked else world

    def _local(self, world: World) -> Iterator[tuple[str, World, bool]]:
        """Answers within a process: they always come."""
        if world.asking:
            found = replace(world, asking=False, reserved=True)
            yield "allocated", self._destination(found, Allocated(0)), False
        if world.adopting:
            destination = world.destination
            assert destination is not None
            run = replace(world, adopting=False, reserved=False, running=destination.taken_over)
            yield "adopted", self._destination(run, Adopted(True)), False
        if world.source_news:
            news, rest = world.source_news[0], world.source_news[1:]
            heard = replace(world, source_news=rest)
            after = self._tell(heard) if news == "report" else self._source(heard, news)
            yield "news at the source", after, False
        if world.destination_news and not (world.destination_news[0] == "drop" and world.adopting):
            news, rest = world.destination_news[0], world.destination_news[1:]
            heard = replace(world, destination_news=rest)
            if news == "drop":
                yield "dropped", replace(heard, running=None), False
            else:
                yield "news at the destination", self._destination(heard, news), False
        if world.stopping:
            yield "destination stops", self._kill_destination(world), False

    def _home(self, world: World) -> Iterator[tuple[str, World, bool]]:
        for place, (side, epoch) in enumerate(world.asked):
            rest = world.asked[:place] + world.asked[place + 1 :]
            granted = not world.over and (
                (epoch, side) == (world.epoch, world.owner)
                or (epoch.attempt == world.epoch.attempt and epoch.move > world.epoch.move)
            )
            after = replace(world, asked=rest, told=(*world.told, (side, granted)))
            if granted:
                after = replace(after, epoch=epoch, owner=side)
            yield f"home decides for {side}", after, False
        for place, (side, granted) in enumerate(world.told):
            told = replace(world, told=world.told[:place] + world.told[place + 1 :])
            yield f"home answers {side}", self._claimed(told, side, granted), False
        gone = world.source is None if world.owner == "source" else world.stopping or self._dead(world)
        if gone and not world.over:
            yield "home recovers", replace(world, over=True, epoch=Epoch(1, 0), owner="another"), False

    def _dead(self, world: World) -> bool:
        return not world.linked and world.destination is None

    def _claimed(self, world: World, side: str, granted: bool | None) -> World:
        feed = self._source if side == "source" else self._destination
        return feed(world, Claimed(granted))

    def _clocks(self, world: World) -> Iterator[tuple[str, World, bool]]:
        for side, half in (("source", world.source), ("destination", world.destination)):
            if half is None or half.ended or half.wake == math.inf:
                continue
            asked = any(who == side for who, _ in (*world.asked, *world.told))
            if asked and half.wake == half.deadline:
                continue
            late = replace(half, deadline=half.deadline - half.wake, again=half.again - half.wake)
            after = replace(world, **{side: late})
            feed = self._source if side == "source" else self._destination
            yield f"{side} waits", feed(after, Tick()), False

    def _faults(self, world: World) -> Iterator[tuple[str, World]]:
        for link in ("to_destination", "to_source"):
            queue = getattr(world, link)
            if queue:
                yield "lose", replace(world, **{link: queue[1:]})
                yield "repeat", replace(world, **{link: (queue[0], *queue)})
        if world.to_destination and isinstance(world.to_destination[0], tuple):
            copy, valid, _ = world.to_destination[0]
            rest = ((copy, valid, False), *world.to_destination[1:])
            yield "damage", replace(world, to_destination=rest)
        if world.linked:
            yield "cut", self._cut(world)
        if not world.over:
            yield "cancel", self._cancel(world)
            for side in ("source", "destination"):
                if any(who == side for who, _ in (*world.asked, *world.told)):
                    yield "home away", self._away(world, side)
        if world.asking:
            yield "no room", self._destination(replace(world, asking=False), Denied("full"))
        session = world.source is not None and not world.source.ended
        if world.live and session and world.source_engine in ("running", "paused"):
            lost = replace(world, source_news=(*world.source_news, Dropped()), valid=False)
            if world.source_engine == "running":
                yield "preempt", replace(lost, computed=0)
            if world.epoch == world.source_epoch and not world.over:
                yield "stop string", replace(lost, source_engine="gone", over=True, served=True)
        if world.source_engine == "prefill":
            lost = replace(world, source_news=(*world.source_news, Dropped()))
            yield "preempt", replace(lost, computed=0, valid=False)
            if world.epoch == world.source_epoch and not world.over:
                yield "end", replace(lost, source_engine="gone", over=True, served=True, valid=False)
        if world.source is not None:
            died = replace(world, source=None, source_engine="gone", source_news=(), to_source=())
            told = tuple(one for one in died.told if one[0] != "source")
            yield "kill source", self._cut(replace(died, told=told))
        if not self._dead(world):
            yield "kill destination", self._kill_destination(world)
        for place, (side, _) in enumerate(world.told):
            rest = world.told[:place] + world.told[place + 1 :]
            yield "no answer", self._claimed(replace(world, told=rest), side, None)
        if world.adopting:
            failed = self._destination(replace(world, adopting=False), Adopted(False))
            yield "adopt fails", replace(failed, stopping=True)

    def _cut(self, world: World) -> World:
        """What is on the way may be lost; each end hears of it in its own time."""
        if not world.linked:
            return world
        heard_source = () if world.source is None else (Lost("cut"),)
        heard_destination = () if world.destination is None else (Lost("cut"),)
        return replace(
            world,
            linked=False,
            to_destination=(),
            to_source=(),
            source_news=(*world.source_news, *heard_source),
            destination_news=(*world.destination_news, *heard_destination),
        )

    def _kill_destination(self, world: World) -> World:
        cut = self._cut(replace(world, destination=None, destination_news=()))
        return replace(
            cut,
            destination_news=(),
            asking=False,
            reserved=False,
            adopting=False,
            running=None,
            stopping=False,
            told=tuple(one for one in cut.told if one[0] != "destination"),
            asked=tuple(one for one in cut.asked if one[0] != "destination"),
        )

    def _cancel(self, world: World) -> World:
        return replace(
            world,
            over=True,
            source_engine="gone",
            valid=False,
            running=None,
            source_news=(*world.source_news, Cancelled()),
            destination_news=(*world.destination_news, Cancelled(), *(("drop",) if world.adopting else ())),
        )

    def _away(self, world: World, side: str) -> World:
        """The home does not answer for a whole lease: the claim's deadline comes first; nobody listens."""
        half = getattr(world, side)
        asked = tuple(one for one in world.asked if one[0] != side)
        told = tuple(one for one in world.told if one[0] != side)
        world = replace(world, asked=asked, told=told, over=True)
        if half is None or half.ended:
            return world
        late = replace(world, **{side: replace(half, deadline=0.0, again=math.inf)})
        return (self._source if side == "source" else self._destination)(late, Tick())
