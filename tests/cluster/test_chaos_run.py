"""What a chaos run learns from controllers that begin anew while it goes on."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import cast

import pytest

from cluster import control_pb2 as pb
from cluster.chaos import run as running
from cluster.chaos.run import Sight
from cluster.chaos.verdict import by_outcome, moves
from cluster.control_client import ControlClient


def after_moves(uptime: float, **counts: int) -> pb.ClusterStatus:
    """Of a controller that has seen so many moves, by cause; all were committed."""
    each = [
        pb.MigrationCount(cause=cause, outcome="committed", count=count) for cause, count in counts.items()
    ]
    return pb.ClusterStatus(uptime=uptime, migrations=pb.MigrationTotals(counts=each))


def test_moves_are_those_of_the_run() -> None:
    known = ("operator", "committed")
    assert moves(after_moves(5, operator=3), after_moves(9, operator=7)) == {known: 4}
    assert moves(after_moves(5, operator=3), after_moves(2, operator=7)) == {known: 7}
    assert moves(after_moves(5, operator=9), after_moves(9, operator=7)) == {known: 7}


def test_moves_under_a_controller_that_died_count_too() -> None:
    sight = Sight(cast("ControlClient", None), after_moves(5, operator=3))
    for status in (after_moves(9, operator=5, drain=1), pb.ClusterStatus(), after_moves(2, drain=4)):
        sight.see(status)
    assert by_outcome(sight.moved) == {"committed": 7}
    assert by_outcome(sight.moved, "operator") == {"committed": 2}


class Beginning:
    """A controller that tells of nothing at first, then of a pool without its instance, then of all."""

    def __init__(self) -> None:
        pool = pb.Pool(name="decode", target=1, ready=1)
        books = pb.InstanceStatus(blocks_total=4, blocks_free=4)
        silent = pb.Instance(name="decode-0", role="decode")
        known = pb.Instance(name="decode-0", role="decode", status=books)
        self._told = [
            pb.ClusterStatus(),
            pb.ClusterStatus(pools=[pb.Pool(name="decode", target=1)]),
            pb.ClusterStatus(pools=[pool], instances=[silent]),
            pb.ClusterStatus(pools=[pool], instances=[known]),
        ]

    def status(self) -> pb.ClusterStatus:
        return self._told.pop(0) if self._told[1:] else self._told[0]


def test_a_controller_that_has_just_begun_has_no_balanced_books(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(running, "LOOK", 0.0)
    wrong, status = asyncio.run(running._quiet(cast("ControlClient", Beginning())))
    assert wrong == ""
    assert [one.status.blocks_free for one in status.instances] == [4]
    monkeypatch.setattr(running, "QUIET", 0.1)
    empty = SimpleNamespace(status=pb.ClusterStatus)
    wrong, _ = asyncio.run(running._quiet(cast("ControlClient", empty)))
    assert wrong == "the controller knows of no pools"
