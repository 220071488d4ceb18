"""Whatever happens to requests on two instances, their tokens are those they would have alone."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.ahead import Ahead
from engine.blocks import BlockPool
from engine.commits import Commits
from engine.core import EngineCore
from engine.live import Live
from engine.planner import Planner
from engine.prefix_cache import PrefixCache
from engine.roster import Roster
from engine.tables import BlockTables
from tests.engine.mutants import mutate
from tests.engine.world import World


def live_through(seed: int, operations: int = 150) -> World:
    world = World(random.Random(seed).choice)
    for _ in range(operations):
        world.act()
    world.close()
    return world


def live_through_many(seeds: int) -> dict[str, int]:
    """What happened in so many lives."""
    happened = {"moved": 0, "recovered": 0, "preempted": 0, "hits": 0, "copies": 0, "ahead": 0}
    for seed in range(seeds):
        world = live_through(seed)
        happened["moved"] += world.moved
        happened["recovered"] += world.recovered
        for bench in world.benches:
            happened["preempted"] += bench.core.status().preemptions
            happened["hits"] += bench.core.status().prefix_hits
            happened["copies"] += bench.runner.copies
            happened["ahead"] += bench.runner.ahead
    return happened


@given(data=st.data())
def test_ledger_and_tokens_hold_through_any_sequence_of_operations(data: st.DataObject) -> None:
    world = World(lambda options: data.draw(st.sampled_from(options)))
    for _ in range(data.draw(st.integers(1, 40))):
        world.act()
    world.close()


def test_ledger_and_tokens_hold_in_long_lives_in_which_everything_happens(full: bool) -> None:
    happened = live_through_many(2000 if full else 60)
    assert all(happened.values()), happened


MUTANTS = {
    "write in place at ref > 1": (BlockTables, "grow", "> 1", "> 99"),
    "copy that is not carried out": (BlockTables, "grow", "copies = ((source, target),)", "pass"),
    "block freed at its first release": (BlockPool, "release", "refs[block] == 0", "True"),
    "blocks of the step in flight reused": (BlockTables, "close", "if self._given:", "if False:"),
    "a step ahead is one position behind": (Ahead, "_work", "sequence.computed + 1", "sequence.computed"),
    "a step ahead draws for the position before": (
        Ahead,
        "_work",
        "(sequence.output) + 1",
        "(sequence.output)",
    ),
    "a step ahead takes another's token": (Ahead, "plan", "fed=tuple(rows[id(one)]", "fed=tuple(0"),
    "a step ahead has no room for its token": (Ahead, "plan", "tables.grow(one, 2)", "()"),
    "fork without a reference": (BlockTables, "fork", "self.pool.share(sequence.blocks)", "pass"),
    "eviction of referenced blocks": (PrefixCache, "revive", "del self._idle[block]", "pass"),
    "partly filled block in the cache": (
        BlockTables,
        "advance",
        "sequence.computed // size\n",
        "-(-sequence.computed // size)\n",
    ),
    "whole prompt taken from the cache": (BlockTables, "lookup", "len(sequence) - 1", "len(sequence)"),
    "position restarted at each chunk": (Planner, "_work", "start,\n", "0,\n"),
    "sampling on a chunk that is not the last": (
        Planner,
        "_work",
        "last = stop == len(sequence)",
        "last = True",
    ),
    "computed kept after a preemption": (Roster, "preempt", "sequence.computed = 0", "pass"),
    "output lost in a preemption": (
        Roster,
        "preempt",
        "sequence.computed = 0",
        "sequence.computed = 0; sequence.output.clear()",
    ),
    "victim's work stays in the plan": (Planner, "_evict", "entries.pop(id(victim), None)", "None"),
    "result given to an ended sequence": (Commits, "commit", "sequence.phase not in RUNS", "False"),
    "end of sequence ignored": (Live, "ending", "token in self.ends", "False"),
    "cancelled blocks kept": (Roster, "end", "self.tables.close(sequence)", "pass"),
    "first choice drawn for all": (Live, "choices", "self.undrawn", "(0,)"),
    "older epoch stays": (EngineCore, "_make_way", "self.cancel(request_id)", "pass"),
}


@pytest.mark.parametrize("name", MUTANTS)
def test_a_mutant_does_not_live_through_it(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    mutate(monkeypatch, *MUTANTS[name])
    with pytest.raises((AssertionError, KeyError, IndexError, ValueError)):
        live_through_many(400)
