"""A request leaves one instance and goes on at another with the same tokens."""

from __future__ import annotations

from dataclasses import replace

import pytest

from engine.core import Reservation
from engine.errors import Conflict, ContextLengthExceeded, Overloaded, TransferFailed
from engine.request import Request
from engine.sequence import Epoch, Phase, Sequence
from tests.engine.toy import Bench, alone, prompt, request


def copy(source: Bench, target: Bench, reservation: Reservation, name: str) -> list[Sequence]:
    """What a session does: each block once, tables in the destination's numbers."""
    sequences = source.core.sequences(name)
    blocks = list(dict.fromkeys(block for sequence in sequences for block in sequence.blocks))
    missing = len(blocks) - len(reservation.blocks)
    if missing > 0:
        target.core.extend(reservation, missing)
    there = dict(zip(blocks, reservation.blocks, strict=False))
    spared = reservation.cached // source.runner.block_size
    for block in blocks[spared:]:
        target.runner.store[there[block]] = list(source.runner.store[block])
    return [
        replace(
            sequence,
            phase=Phase.DECODE,
            output=list(sequence.output),
            blocks=[there[block] for block in sequence.blocks],
            epoch=Epoch(0, sequence.epoch.move + 1),
        )
        for sequence in sequences
    ]


def prefilled(one: Request, *, total: int = 64, block_size: int = 4) -> Bench:
    """An instance that has just finished the prefill of a handoff."""
    bench = Bench(budget=8, total=total, block_size=block_size)
    bench.core.submit(one, handoff=True)
    bench.drain()
    return bench


def test_a_handoff_stops_after_its_first_token_and_says_so() -> None:
    bench = prefilled(request("a", prompt(20), 9))
    assert len(bench.output("a")) == 1
    assert [outcome.prefilled for outcome in bench.outcomes] == [(), (), ("a",)]
    assert bench.core.sequences("a")[0].phase is Phase.PAUSED


def test_each_chunk_of_a_prefill_is_reported() -> None:
    bench = prefilled(request("a", prompt(20), 9))
    assert [outcome.progress for outcome in bench.outcomes] == [
        (("a", 8),),
        (("a", 16),),
        (("a", 20),),
    ]


def test_a_handoff_that_ends_with_its_first_token_is_finished_and_never_prefilled() -> None:
    bench = prefilled(request("a", prompt(20), 1))
    assert [outcome.prefilled for outcome in bench.outcomes] == [(), (), ()]
    assert bench.outcomes[-1].dropped == ("a",)
    assert bench.core.pool.used == 0


def test_a_handoff_is_prefilled_when_the_last_of_its_choices_is() -> None:
    bench, one = Bench(budget=64, total=64), request("a", prompt(10), 9, n=2)
    choices = [Sequence(one, choice, alone(one, choice)[:2]) for choice in (0, 1)]
    bench.core.submit(one, choices=choices, handoff=True)
    bench.core.finish("a", 1, 2)
    bench.drain()
    assert bench.outcomes[-1].prefilled == ("a",)


def test_the_end_of_the_last_choice_that_was_awaited_makes_a_handoff_prefilled() -> None:
    bench, one = Bench(budget=13), request("a", prompt(10), 9, n=2)
    choices = [Sequence(one, choice, alone(one, choice)[:2]) for choice in (0, 1)]
    bench.core.submit(one, choices=choices, handoff=True)
    outcome = bench.step()
    assert outcome is not None
    assert outcome.prefilled == ()
    bench.core.finish("a", 1, 2)
    told = bench.core.settle()
    assert told is not None
    assert told.prefilled == ("a",)


def test_the_blocks_of_a_paused_request_are_nobody_elses() -> None:
    one = request("a", prompt(20), 9)
    bench = prefilled(one, total=8)
    other = request("b", prompt(9, 1), 4)
    bench.core.submit(other)
    bench.drain()
    bench.core.resume("a")
    bench.drain()
    assert bench.output("a") == alone(one)
    assert bench.output("b") == alone(other)


@pytest.mark.parametrize("n", [1, 3])
def test_a_handed_over_request_goes_on_with_the_same_tokens(n: int) -> None:
    one = request("a", prompt(19), 9, n=n)
    source, target = prefilled(one), Bench()
    reservation = target.core.reserve("s", one, 20)
    target.core.adopt(reservation, copy(source, target, reservation, "a"))
    assert source.core.release("a")
    source.drain()
    target.drain()
    for choice in range(n):
        rest = [e.drawn.token for e in target.emitted if e.key.choice == choice and e.drawn]
        assert source.output("a", choice) + rest == alone(one, choice)
    assert source.core.pool.used == target.core.pool.used == target.core.pool.reserved == 0
    assert {e.epoch for e in target.emitted} == {Epoch(0, 1)}
    assert source.core.status().handoffs == 1


def test_shared_blocks_stay_shared_after_a_handover_and_are_copied_on_write_there() -> None:
    one = request("a", prompt(37), 5, n=4)
    source, target = prefilled(one, block_size=16), Bench(block_size=16)
    reservation = target.core.reserve("s", one, 37)
    assert len(reservation.blocks) == 3
    target.core.adopt(reservation, copy(source, target, reservation, "a"))
    target.drain()
    assert target.runner.copies == 3


def test_a_resumed_handoff_decodes_where_it_is() -> None:
    one = request("a", prompt(20), 9)
    bench = prefilled(one)
    assert bench.core.resume("a")
    bench.drain()
    assert bench.output("a") == alone(one)
    assert bench.core.status().handoffs_failed == 1


def test_a_handoff_that_fails_during_its_prefill_never_pauses() -> None:
    bench, one = Bench(budget=8), request("a", prompt(20), 9)
    bench.core.submit(one, handoff=True)
    bench.step()
    bench.core.resume("a")
    bench.drain()
    assert bench.output("a") == alone(one)


def test_release_frees_the_blocks_and_says_nothing() -> None:
    bench = prefilled(request("a", prompt(20), 9))
    bench.core.release("a")
    assert bench.core.settle() is None
    assert bench.core.pool.used == 0


def test_a_preempted_handoff_is_dropped_and_prefilled_again() -> None:
    bench = Bench(total=12, budget=4)
    old, handed = request("old", prompt(8), 30), request("a", prompt(30, 1), 9)
    bench.core.submit(old)
    for _ in range(4):
        bench.step()
    bench.core.submit(handed, handoff=True)
    bench.step()
    while bench.core.status().preemptions == 0:
        assert bench.step() is not None
    assert bench.outcomes[-1].dropped == ("a",)
    bench.drain()
    assert [name for outcome in bench.outcomes for name in outcome.prefilled] == ["a"]
    bench.core.resume("a")
    bench.drain()
    assert bench.output("a") == alone(handed)
    assert bench.output("old") == alone(old)


def test_what_became_of_an_older_attempt_does_not_end_the_handoff_of_the_newer() -> None:
    bench, one = Bench(budget=8), request("a", prompt(12), 9)
    bench.core.submit(one, handoff=True)
    bench.step()
    bench.core.submit(one, epoch=Epoch(1), handoff=True)
    bench.drain()
    assert all(outcome.dropped == () for outcome in bench.outcomes)
    assert bench.outcomes[-1].prefilled == ("a",)


def test_an_epoch_that_a_movement_raised_is_the_one_that_a_newer_must_beat() -> None:
    bench, one = Bench(), request("a", prompt(12), 9)
    bench.core.submit(one)
    bench.core.sequences("a")[0].epoch = Epoch(0, 2)
    with pytest.raises(Conflict):
        bench.core.submit(one, epoch=Epoch(0, 2))


def test_a_running_request_moves_between_two_steps() -> None:
    one = request("a", prompt(13), 12, n=2)
    source, target = Bench(), Bench()
    source.core.submit(one)
    for _ in range(5):
        source.step()
    source.core.freeze("a")
    reservation = target.core.reserve("s", one, 16)
    target.core.adopt(reservation, copy(source, target, reservation, "a"))
    source.core.release("a")
    target.drain()
    for choice in range(2):
        rest = [e.drawn.token for e in target.emitted if e.key.choice == choice and e.drawn]
        assert source.output("a", choice) + rest == alone(one, choice)


def test_the_cached_prefix_is_pinned_by_a_reservation() -> None:
    one = request("a", prompt(20), 9)
    target = Bench(total=16)
    target.core.submit(request("warm", prompt(20), 1))
    target.drain()
    reservation = target.core.reserve("s", one, 24)
    assert (reservation.cached, len(reservation.blocks)) == (20, 6)
    assert (target.core.pool.used, target.core.pool.reserved) == (5, 1)
    target.core.submit(request("b", prompt(9, 1), 30))
    target.drain()
    source = prefilled(one)
    target.core.adopt(reservation, copy(source, target, reservation, "a"))
    target.drain()
    rest = [e.drawn.token for e in target.emitted if e.key.request_id == "a" and e.drawn]
    assert source.output("a") + rest == alone(one)


def test_adopted_blocks_are_found_by_their_prefix() -> None:
    one = request("a", prompt(20), 3)
    source, target = prefilled(one), Bench()
    reservation = target.core.reserve("s", one, 20)
    target.core.adopt(reservation, copy(source, target, reservation, "a"))
    again = request("b", prompt(20), 3)
    target.core.submit(again)
    target.drain()
    assert target.core.status().prefix_hits == 16
    assert target.output("b") == alone(again)


def test_what_was_reserved_beyond_need_is_free_after_adoption() -> None:
    one = request("a", prompt(10), 3)
    source, target = prefilled(one), Bench()
    reservation = target.core.reserve("s", one, 40)
    target.core.adopt(reservation, copy(source, target, reservation, "a"))
    assert target.core.pool.reserved == 0
    assert target.core.pool.used == 3
    target.core.check()


def test_a_reservation_that_is_given_up_leaves_nothing_and_may_be_given_up_twice() -> None:
    target = Bench()
    reservation = target.core.reserve("s", request("a", prompt(10), 3), 10)
    target.core.extend(reservation, 2)
    assert target.core.pool.reserved == 5
    for _ in range(2):
        target.core.unreserve(reservation)
    target.core.check()
    assert target.core.pool.free == target.core.pool.total


def test_an_adoption_after_the_reservation_is_gone_fails() -> None:
    one = request("a", prompt(10), 3)
    source, target = prefilled(one), Bench()
    reservation = target.core.reserve("s", one, 10)
    sequences = copy(source, target, reservation, "a")
    target.core.unreserve(reservation)
    with pytest.raises(TransferFailed, match="no reservation"):
        target.core.adopt(reservation, sequences)
    with pytest.raises(TransferFailed, match="no reservation"):
        target.core.extend(reservation, 1)


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"blocks": [60]}, "did not reserve"),
        ({"computed": 99}, "99 of them"),
        ({"computed": 11}, "11 of them"),
    ],
    ids=["foreign block", "more computed than slots", "nothing left to compute"],
)
def test_a_state_that_cannot_run_is_not_adopted(wrong: dict[str, object], says: str) -> None:
    one = request("a", prompt(10), 3)
    source, target = prefilled(one), Bench()
    reservation = target.core.reserve("s", one, 10)
    (sequence,) = copy(source, target, reservation, "a")
    with pytest.raises(TransferFailed, match=says):
        target.core.adopt(reservation, [replace(sequence, **wrong)])  # type: ignore[arg-type]
    target.core.unreserve(reservation)
    target.core.check()


def test_a_request_that_lives_here_is_adopted_only_with_a_newer_epoch() -> None:
    one = request("a", prompt(10), 3)
    source, target = prefilled(one), Bench()
    target.core.submit(one, epoch=Epoch(1, 0))
    reservation = target.core.reserve("s", one, 10)
    with pytest.raises(Conflict):
        target.core.adopt(reservation, copy(source, target, reservation, "a"))


def test_a_reservation_is_refused_when_blocks_or_sequences_are_short() -> None:
    target = Bench(total=16, max_sequences=2)
    target.core.submit(request("b", prompt(30, 1), 9))
    for _ in range(3):
        target.step()
    with pytest.raises(Overloaded, match=r"engine\.kv_memory"):
        target.core.reserve("s", request("a", prompt(30), 9), 30)
    with pytest.raises(Overloaded, match=r"engine\.max_sequences"):
        target.core.reserve("s", request("a", prompt(3), 9, n=2), 3)
    with pytest.raises(ContextLengthExceeded):
        target.core.reserve("s", request("a", prompt(30), 90), 30)
    target.core.check()


def test_a_promised_place_among_the_running_is_kept() -> None:
    target, one = Bench(max_sequences=2), request("a", prompt(10), 3)
    reservation = target.core.reserve("s", one, 10)
    for i in range(2):
        target.core.submit(request(f"r{i}", prompt(4, i), 9))
    target.step()
    assert target.core.status().running == 1
    source = prefilled(one)
    target.core.adopt(reservation, copy(source, target, reservation, "a"))
    assert target.core.status().running == 2


def test_a_reservation_without_tokens_is_a_place_in_the_queue_and_takes_no_blocks() -> None:
    target, one = Bench(total=16, max_sequences=1), request("a", prompt(10), 3)
    target.core.submit(request("b", prompt(30, 1), 9))
    target.step()
    reservation = target.core.reserve("s", one, 0)
    assert (reservation.blocks, target.core.pool.reserved) == ([], 0)
    target.core.adopt(reservation, [Sequence(one, epoch=Epoch(0, 1))], undrawn=(0,))
    assert target.core.status().waiting == 1
    target.drain()
    assert target.output("a") == alone(one)


def test_a_full_queue_reserves_no_place() -> None:
    target = Bench(max_sequences=1, queue_limit=1)
    target.core.submit(request("b", prompt(8, 1), 9))
    with pytest.raises(Overloaded, match=r"engine\.queue_limit"):
        target.core.reserve("s", request("a", prompt(10), 3), 0)


def test_a_reservation_that_grows_from_nothing_needs_a_place_among_the_running() -> None:
    target = Bench(max_sequences=1)
    target.core.submit(request("b", prompt(8, 1), 9))
    target.step()
    reservation = target.core.reserve("s", request("a", prompt(10), 3), 0)
    with pytest.raises(Overloaded, match=r"engine\.max_sequences"):
        target.core.extend(reservation, 3)
    target.core.unreserve(reservation)


@pytest.mark.parametrize("undrawn", [(0, 1, 2, 3), (1, 3)])
def test_a_sequence_without_output_stands_for_the_choices_that_came_with_it(undrawn: tuple[int, ...]) -> None:
    one = request("a", prompt(20), 4, n=4)
    target = Bench()
    reservation = target.core.reserve("s", one, 0)
    target.core.adopt(reservation, [Sequence(one, undrawn[0], epoch=Epoch(0, 1))], undrawn)
    target.drain()
    assert {e.key.choice for e in target.emitted} == set(undrawn)
    for choice in undrawn:
        assert target.output("a", choice) == alone(one, choice)


def test_who_lives_here() -> None:
    bench = Bench(budget=8)
    bench.core.submit(replace(request("a", prompt(20), 9, n=2), arrival=100.0, priority=3))
    (waiting,) = bench.core.requests(now=103.0)
    assert (waiting.request_id, waiting.phase, waiting.blocks, waiting.age) == ("a", "waiting", 0, 3.0)
    assert (waiting.prompt_tokens, waiting.output_tokens, waiting.priority) == (20, 0, 3)
    for _ in range(4):
        bench.step()
    (running,) = bench.core.requests(now=103.0)
    assert (running.phase, running.output_tokens, running.blocks) == ("decode", 4, 7)
    bench.core.freeze("a")
    assert bench.core.requests(now=0.0)[0].phase == "paused"
