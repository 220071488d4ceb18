"""First come, first served, and the preempted before all who wait."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from engine.queues.fcfs import FCFSQueue
from engine.sequence import Sequence, SequenceKey
from tests.engine.toy import request


def waiting(name: str) -> Sequence:
    return Sequence(request(name, [1]))


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


@given(st.lists(st.tuples(st.sampled_from(["add", "front", "remove"]), st.integers(0, 8))))
def test_the_queue_is_a_list_in_which_every_sequence_stands_once(operations: list[tuple[str, int]]) -> None:
    queue, model = FCFSQueue(), list[str]()
    for what, number in operations:
        name = str(number)
        if what == "remove":
            removed = queue.remove(SequenceKey(name, 0))
            assert (removed is not None) == (name in model)
            if removed is not None:
                model.remove(name)
        elif name not in model:
            queue.add(waiting(name), front=what == "front")
            model.insert(0 if what == "front" else len(model), name)
        assert order(queue) == model
        assert len(queue) == len(model)
