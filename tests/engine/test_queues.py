"""First come, first served among those of one priority, and the preempted before all of it who wait."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from engine.queues.fcfs import FCFSQueue
from engine.sequence import Sequence, SequenceKey
from tests.engine.toy import request


def waiting(name: str, priority: int = 0) -> Sequence:
    return Sequence(replace(request(name, [1]), priority=priority))


def order(queue: FCFSQueue) -> list[str]:
    return [sequence.request.id for sequence in queue]


def test_sequences_are_served_in_the_order_of_their_arrival() -> None:
    queue = FCFSQueue()
    for name in "cab":
        queue.add(waiting(name))
    assert order(queue) == ["c", "a", "b"]


def test_a_preempted_sequence_comes_first() -> None:
    queue = FCFSQueue()
    for name in "ab":
        queue.add(waiting(name))
    queue.add(waiting("p"), front=True)
    assert order(queue) == ["p", "a", "b"]


def test_two_preempted_newest_first_keep_their_order() -> None:
    queue = FCFSQueue()
    for name in ("newer", "older"):
        queue.add(waiting(name), front=True)
    assert order(queue) == ["older", "newer"]


def test_removing_who_does_not_wait_gives_none() -> None:
    assert FCFSQueue().remove(SequenceKey("a", 0)) is None


def test_a_higher_priority_waits_before_a_lower_one_even_if_that_was_preempted() -> None:
    queue = FCFSQueue()
    for name, priority in (("a", 0), ("low", -1), ("urgent", 5), ("b", 0), ("second", 5)):
        queue.add(waiting(name, priority))
    queue.add(waiting("preempted"), front=True)
    assert order(queue) == ["urgent", "second", "preempted", "a", "b", "low"]


STEPS = st.tuples(st.sampled_from(["add", "front", "remove"]), st.integers(0, 8))


@given(st.lists(STEPS), st.lists(st.integers(-1, 1), min_size=9, max_size=9))
def test_the_queue_is_a_list_by_priority_in_which_every_sequence_stands_once(
    operations: list[tuple[str, int]], priorities: list[int]
) -> None:
    queue, model = FCFSQueue(), list[str]()
    for what, number in operations:
        name = str(number)
        if what == "remove":
            removed = queue.remove(SequenceKey(name, 0))
            assert (removed is not None) == (name in model)
            if removed is not None:
                model.remove(name)
        elif name not in model:
            queue.add(waiting(name, priorities[number]), front=what == "front")
            model.insert(0 if what == "front" else len(model), name)
            model.sort(key=lambda name: -priorities[int(name)])
        assert order(queue) == model
        assert len(queue) == len(model)
