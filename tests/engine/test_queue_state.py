"""Where a queue with levels has a sequence moves with it: a long job is not taken for a new one elsewhere."""

from __future__ import annotations

import pytest

from decode_pool.continuous_batching import ContinuousBatching
from engine.cost_model import LinearCost
from engine.queues.mlfq import Levels, MultiLevelQueue
from engine.sequence import Phase, Sequence
from migration.state import capture, restore
from tests.engine.mutants import mutate
from tests.engine.toy import prompt, request


def queue() -> MultiLevelQueue:
    return MultiLevelQueue(Levels(quantum=0.010), ContinuousBatching(64), LinearCost(0, 0, 0.001))


def runs(where: MultiLevelQueue, sequence: Sequence, *ends: float) -> None:
    """Let it run in steps that end at these times."""
    where.add(sequence)
    where.share([], where, 0.0)
    where.remove(sequence.key)
    sequence.phase, sequence.computed = Phase.DECODE, len(sequence.request.prompt)
    sequence.output.append(1)
    for end in ends:
        where.share([sequence], (), end)


def moved_after_a_while() -> None:
    sequence = Sequence(request("r", prompt(3)))
    runs(queue(), sequence, 0.015, 0.025)
    assert (sequence.level, sequence.served) == (1, pytest.approx(0.010))
    (arrived,) = restore(capture([sequence], {}))
    arrived.blocks, arrived.phase = [], Phase.WAITING
    there = queue()
    there.add(arrived)
    there.share([], there, 0.0)
    assert there.level(arrived.key) == 1
    there.remove(arrived.key)
    arrived.phase = Phase.DECODE
    there.share([arrived], (), 0.011)
    assert there.level(arrived.key) == 2, "21 of 20 ms of level 1's quantum"


def test_level_and_service_move_along() -> None:
    moved_after_a_while()


@pytest.mark.parametrize("old", ["sequence.level\n", "sequence.served,"])
def test_a_queue_that_forgets_them_would_be_noticed(monkeypatch: pytest.MonkeyPatch, old: str) -> None:
    mutate(monkeypatch, MultiLevelQueue, "_job", old, {"sequence.level\n": "None\n"}.get(old, "0.0,"))
    with pytest.raises(AssertionError):
        moved_after_a_while()
