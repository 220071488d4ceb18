"""Tells the halves of a session what happens, and carries out in the world what they want done."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from engine.sequence import Epoch
from migration.destination import Destination
from migration.events import (
    Adopt,
    Allocate,
    Claim,
    Damaged,
    Drop,
    Free,
    Freeze,
    Frozen,
    Look,
    Progress,
    Release,
    Resume,
    Scatter,
)
from migration.messages import Abort, Commit, Copy, Refused, Reserve
from migration.source import SourceState
from tests.migration.world import BLOCKS, EPOCH, TIMES, Violation, World, replace


@dataclass(frozen=True)
class Halves:
    """`destination` is begun by the first RESERVE; the source is there from the start."""

    destination: type[Destination] = Destination

    def tell(self, world: World, side: str, event: Any) -> World:
        return (self.source_hears if side == "source" else self.destination_hears)(world, event)

    def source_hears(self, world: World, event: Any) -> World:
        source = world.source
        if source is None or source.ended:
            return world
        after, actions = source.decide(event, 0.0, torn=world.torn)
        world = replace(world, source=after)
        for action in actions:
            match action:
                case Claim(epoch):
                    world = replace(world, asked=(*world.asked, ("source", epoch)))
                case Resume(epoch):
                    world = _resume(world, epoch)
                case Release():
                    world = _release(world)
                case Copy():
                    world = replace(world, copy=action)
                case Look():
                    world = replace(world, question="look")
                case Freeze():
                    world = replace(world, question="freeze")
                case _:
                    world = to_destination(world, action)
        return world

    def destination_hears(self, world: World, event: Any) -> World:
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

    def report(self, world: World) -> World:
        """As the driver does: what is final, as soon as the session can use it, behind older news."""
        if world.source_news:
            return replace(world, source_news=(*world.source_news, "report"))
        return self.catch_up(world)

    def catch_up(self, world: World) -> World:
        """Tell the source of a handoff how far its engine has come."""
        source = world.source
        if source is None or not world.handoff:
            return world
        if source.state not in (SourceState.COPYING, SourceState.FROZEN):
            return world
        frozen = world.source_engine == "paused"
        return self.source_hears(world, Frozen(BLOCKS) if frozen else Progress(world.computed))

    def arrive(self, world: World, message: Any) -> World:
        """A message has come to the destination, which may not exist any more."""
        destination = world.destination
        if isinstance(message, Reserve):
            if destination is None:
                begun, actions = self.destination.begin(EPOCH, TIMES, message.blocks)
                return self._do(replace(world, destination=begun), actions)
            if destination.ended:
                return _answer(world, Refused("stale", "", settled=False))
            return self.destination_hears(world, message)
        if destination is None or destination.ended:
            if isinstance(message, Commit):
                return _answer(world, Refused("unknown", "", settled=False))
            return world if isinstance(message, Abort) else _answer(world, Abort("unknown"))
        if isinstance(message, tuple):
            copy, valid, intact = message
            if not intact:
                return self.destination_hears(world, Damaged())
            after = self.destination_hears(replace(world, whole=world.whole and valid), copy)
            if after.landed != world.landed and destination.received != copy.first:
                raise Violation("a chunk was put where another belongs")
            return after
        return self.destination_hears(world, message)


def to_destination(world: World, message: Any) -> World:
    if not world.linked:
        return world
    return replace(world, to_destination=(*world.to_destination, message))


def _resume(world: World, epoch: Epoch) -> World:
    if world.source_engine == "gone":
        return world
    world = replace(world, handoff=False, source_epoch=epoch)
    return replace(world, source_engine="running") if world.source_engine == "paused" else world


def _release(world: World) -> World:
    if world.source_engine not in ("paused", "gone"):
        raise Violation(f"released while {world.source_engine}")
    return replace(world, source_engine="gone")


def _answer(world: World, message: Any) -> World:
    return replace(world, to_source=(*world.to_source, message)) if world.linked else world
