"""What may go wrong in a world, each out of a budget."""

from __future__ import annotations

import math
from collections.abc import Iterator

from migration.events import Adopted, Cancelled, Claimed, Denied, Dropped, Lost, Tick
from tests.migration.halves import Halves
from tests.migration.world import World, replace


def faults(world: World, halves: Halves) -> Iterator[tuple[str, World]]:
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
        yield "cut", _cut(world)
    if not world.over:
        yield "cancel", _cancel(world)
        for side in ("source", "destination"):
            if any(who == side for who, _ in (*world.asked, *world.told)):
                yield "home away", _away(world, halves, side)
    if world.asking:
        yield "no room", halves.destination_hears(replace(world, asking=False), Denied("full"))
    session = world.source is not None and not world.source.ended
    paused = world.source_engine == "paused"
    if session and paused and not world.torn:
        yield "choice ends", replace(world, valid=False, torn=True)
    if world.live and session and world.source_engine in ("running", "paused"):
        lost = replace(
            world, source_news=(*world.source_news, Dropped()), valid=False, torn=world.torn or paused
        )
        if world.source_engine == "running":
            yield "preempt", replace(lost, computed=0)
        if world.heard(world.source_epoch):
            yield "stop string", replace(lost, source_engine="gone", over=True, served=True)
    if world.source_engine == "prefill":
        lost = replace(world, source_news=(*world.source_news, Dropped()))
        yield "preempt", replace(lost, computed=0, valid=False)
        if world.heard(world.source_epoch):
            yield "end", replace(lost, source_engine="gone", over=True, served=True, valid=False)
    if world.source is not None:
        died = replace(world, source=None, source_engine="gone", source_news=(), to_source=())
        told = tuple(one for one in died.told if one[0] != "source")
        yield "kill source", _cut(replace(died, told=told))
    if not dead(world):
        yield "kill destination", kill_destination(world)
    for place, (side, _) in enumerate(world.told):
        rest = world.told[:place] + world.told[place + 1 :]
        yield "no answer", halves.tell(replace(world, told=rest), side, Claimed(None))
    if world.adopting:
        failed = halves.destination_hears(replace(world, adopting=False), Adopted(False))
        yield "adopt fails", replace(failed, stopping=True)


def _away(world: World, halves: Halves, side: str) -> World:
    """The home does not answer for a whole lease: the claim's deadline comes first; nobody listens."""
    half = getattr(world, side)
    asked = tuple(one for one in world.asked if one[0] != side)
    told = tuple(one for one in world.told if one[0] != side)
    world = replace(world, asked=asked, told=told, over=True)
    if half is None or half.ended:
        return world
    late = replace(world, **{side: replace(half, deadline=0.0, again=math.inf)})
    return halves.tell(late, side, Tick())


def _cancel(world: World) -> World:
    return replace(
        world,
        over=True,
        source_engine="gone",
        valid=False,
        torn=world.torn or world.source_engine == "paused",
        running=None,
        source_news=(*world.source_news, Cancelled()),
        destination_news=(*world.destination_news, Cancelled(), *(("drop",) if world.adopting else ())),
    )


def _cut(world: World) -> World:
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


def kill_destination(world: World) -> World:
    cut = _cut(replace(world, destination=None, destination_news=()))
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


def dead(world: World) -> bool:
    return not world.linked and world.destination is None
