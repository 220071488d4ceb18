"""Visits every world of the model that can be reached, and says what must hold there."""

from __future__ import annotations

from collections import deque

from tests.migration.model import Rules
from tests.migration.world import EPOCH, Violation, World


def check(world: World) -> None:
    """What holds in every world."""
    taken_back = world.source_epoch.move == EPOCH.move + 2 and world.home.epoch >= world.source_epoch
    if world.source_engine == "running" and world.running is not None:
        if not (taken_back or world.over):
            raise Violation("both ends run it, and nobody has fenced one of them")
        if world.heard(world.source_epoch) and world.heard(world.running):
            raise Violation("both ends run it, and the home listens to both")
    if world.reserved and world.running is not None:
        raise Violation("adopted and still reserved")


def settled(world: World) -> None:
    """What holds when nothing can happen any more."""
    if not world.over:
        raise Violation("the request never ends")
    if world.source_engine != "gone" and world.source is not None:
        raise Violation(f"the source still holds blocks: {world.source_engine}")
    if world.reserved or world.running is not None or world.asking:
        raise Violation("the destination still holds blocks")
    for half in (world.source, world.destination):
        if half is not None and not half.ended:
            raise Violation(f"a half waits for ever: {half.state}")


def explore(rules: Rules, start: World) -> int:
    """Visit every world that can be reached from `start`. Raises Violation. Returns how many there are."""
    seen: dict[World, tuple[World, str] | None] = {start: None}
    before: dict[World, list[World]] = {}
    todo = deque([start])
    ends: list[World] = []
    while todo:
        world = todo.popleft()
        try:
            check(world)
            alive = False
            for label, after, fault in rules.moves(world):
                rules.labels.add(label)
                if not fault:
                    alive = True
                    before.setdefault(after, []).append(world)
                if after not in seen:
                    seen[after] = world, label
                    todo.append(after)
            if not alive:
                settled(world)
                ends.append(world)
        except Violation as error:
            raise Violation(f"{error}, after {way(seen, world)}: {world}") from error
    reach = set(ends)
    todo = deque(ends)
    while todo:
        for world in before.get(todo.popleft(), ()):
            if world not in reach:
                reach.add(world)
                todo.append(world)
    if len(reach) < len(seen):
        stuck = next(world for world in seen if world not in reach)
        raise Violation(f"nothing ever ends after {way(seen, stuck)}: {stuck}")
    return len(seen)


def way(seen: dict[World, tuple[World, str] | None], world: World) -> str:
    """How a world came about."""
    labels: list[str] = []
    while (step := seen[world]) is not None:
        world, label = step
        labels.append(label)
    return " · ".join(reversed(labels))


def starts(rules: Rules, budget: int, size: int = 1) -> dict[str, World]:
    return {
        "handoff": rules.begin(budget),
        "running": rules.begin_live(budget, 1, size),
        "waiting": rules.begin_live(budget, 0, size),
    }


QUIET = {"source waits", "destination waits", "source serves"}


def ends(rules: Rules, start: World) -> list[World]:
    """Every way in which a session can end, without faults and timeouts, of a request that runs on."""
    todo, seen, found = [start], set[World](), []
    while todo:
        world = todo.pop()
        following = [after for label, after, _ in rules.moves(world) if label not in QUIET]
        found += [world] if not following else []
        todo += [after for after in following if after not in seen]
        seen.update(following)
    return found
