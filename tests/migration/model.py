"""Every order in which things can happen to a request that moves.

Each half has a clock of its own that may run ahead at any time. Faults come out of a budget. The request
is handed over, with two blocks of prompt, or it is migrated while it runs and grows to `size` full blocks
and one that is being written.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from cluster.stream_order import Ownership
from engine.sequence import Epoch
from migration.destination import Destination
from migration.events import Adopted, Allocated, Begin, Claimed, Dropped, Frozen, Progress, Sent, Tick
from migration.messages import Copy, Reserved
from migration.source import Source
from tests.migration.faults import dead, faults, kill_destination
from tests.migration.halves import Halves, to_destination
from tests.migration.world import BLOCKS, EPOCH, LIVE, TIMES, Violation, World, replace

TAKEN_OVER = {0: 0}
"""What a claim takes over: of the one choice all that is still to come."""


@dataclass
class Rules:
    """What may be swapped for a wrong variant; `home` decides who owns the request."""

    source: type[Source] = Source
    destination: type[Destination] = Destination
    home: type[Ownership] = Ownership
    faults: frozenset[str] = frozenset(
        {"lose", "repeat", "cut", "cancel", "no room", "preempt", "end", "kill source", "kill destination",
         "no answer", "adopt fails", "home away", "damage", "stop string", "choice ends"}
    )  # fmt: skip
    labels: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        self._halves = Halves(self.destination)

    def begin(self, budget: int) -> World:
        world = World(self.source(EPOCH, TIMES), home=self.home(EPOCH), budget=budget)
        return self._halves.source_hears(world, Begin(BLOCKS))

    def begin_live(self, budget: int, blocks: int, size: int = 1) -> World:
        """A request that runs, or without `blocks` one that waits still. It grows to `size` full blocks."""
        source = self.source(EPOCH, TIMES, LIVE)
        world = World(
            source, source_engine="running", handoff=False, live=True, size=size, home=self.home(EPOCH),
            budget=budget,
        )  # fmt: skip
        return self._halves.source_hears(world, Begin(blocks))

    def moves(self, world: World) -> Iterator[tuple[str, World, bool]]:
        """What can happen: a label, the world after it, and whether it is a fault."""
        yield from self._engine(world)
        yield from self._links(world)
        yield from self._local(world)
        yield from self._home(world)
        yield from self._clocks(world)
        if world.budget:
            for label, after in faults(replace(world, budget=world.budget - 1), self._halves):
                if label in self.faults:
                    yield label, after, True

    def _engine(self, world: World) -> Iterator[tuple[str, World, bool]]:
        if world.source_engine == "prefill":
            computed = world.computed + 1
            if computed < BLOCKS:
                yield "chunk", self._halves.report(replace(world, computed=computed, valid=True)), False
            else:
                mode = "paused" if world.handoff else "running"
                done = replace(world, computed=computed, source_engine=mode, valid=True)
                yield "prefilled", self._halves.report(done), False
        for side, epoch in (("source", world.source_epoch), ("destination", world.running)):
            if (side == "source" and world.source_engine != "running") or epoch is None:
                continue
            stopped = _stop(world, side)
            if world.heard(epoch):
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

    def _links(self, world: World) -> Iterator[tuple[str, World, bool]]:
        if world.to_destination:
            message, rest = world.to_destination[0], world.to_destination[1:]
            yield "to destination", self._halves.arrive(replace(world, to_destination=rest), message), False
        if world.to_source:
            message, rest = world.to_source[0], world.to_source[1:]
            after = self._halves.source_hears(replace(world, to_source=rest), message)
            yield "to source", self._halves.report(after) if isinstance(message, Reserved) else after, False
        if world.copy is not None and world.source is not None and not world.source.ended:
            copied, first = replace(world, copy=None), world.copy.first
            for block in range(first, first + world.copy.count):
                copied = to_destination(copied, (Copy(block, 1), world.valid, True))
            yield "sent", self._halves.source_hears(copied, Sent()), False

    def _local(self, world: World) -> Iterator[tuple[str, World, bool]]:
        """Answers within a process: they always come."""
        if world.asking:
            found = replace(world, asking=False, reserved=True)
            yield "allocated", self._halves.destination_hears(found, Allocated(0)), False
        if world.adopting:
            destination = world.destination
            assert destination is not None
            run = replace(world, adopting=False, reserved=False, running=destination.taken_over)
            yield "adopted", self._halves.destination_hears(run, Adopted(True)), False
        if world.source_news:
            news, rest = world.source_news[0], world.source_news[1:]
            heard = replace(world, source_news=rest)
            after = (
                self._halves.catch_up(heard) if news == "report" else self._halves.source_hears(heard, news)
            )
            yield "news at the source", after, False
        if world.destination_news and not (world.destination_news[0] == "drop" and world.adopting):
            news, rest = world.destination_news[0], world.destination_news[1:]
            heard = replace(world, destination_news=rest)
            if news == "drop":
                yield "dropped", replace(heard, running=None), False
            else:
                yield "news at the destination", self._halves.destination_hears(heard, news), False
        if world.stopping:
            yield "destination stops", kill_destination(world), False

    def _home(self, world: World) -> Iterator[tuple[str, World, bool]]:
        for place, (side, epoch) in enumerate(world.asked):
            rest = world.asked[:place] + world.asked[place + 1 :]
            claimed = None if world.over else world.home.claimed(side, epoch, TAKEN_OVER)
            after = replace(world, asked=rest, told=(*world.told, (side, claimed is not None)))
            if claimed is not None:
                after = replace(after, home=claimed)
            yield f"home decides for {side}", after, False
        for place, (side, granted) in enumerate(world.told):
            told = replace(world, told=world.told[:place] + world.told[place + 1 :])
            yield f"home answers {side}", self._halves.tell(told, side, Claimed(granted)), False
        gone = world.source is None if world.owner == "source" else world.stopping or dead(world)
        if gone and not world.over:
            yield "home recovers", replace(world, over=True, home=world.home.fenced(Epoch(1, 0))), False

    def _clocks(self, world: World) -> Iterator[tuple[str, World, bool]]:
        for side, half in (("source", world.source), ("destination", world.destination)):
            if half is None or half.ended or half.wake == math.inf:
                continue
            asked = any(who == side for who, _ in (*world.asked, *world.told))
            if asked and half.wake == half.deadline:
                continue
            late = replace(half, deadline=half.deadline - half.wake, again=half.again - half.wake)
            after = replace(world, **{side: late})
            yield f"{side} waits", self._halves.tell(after, side, Tick()), False


def _stop(world: World, side: str) -> World:
    """The engine of one side drops the request."""
    if side == "destination":
        return replace(world, running=None)
    news = (*world.source_news, Dropped()) if world.live else world.source_news
    return replace(world, source_engine="gone", source_news=news)
