"""Who comes from another instance to run here does not overtake who waits here."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace

import pytest

from decode_pool.continuous_batching import ContinuousBatching
from engine.core import Reservation
from engine.errors import Overloaded
from engine.movements import Movements
from engine.reserve_max import Longest, ReserveMax
from engine.sequence import Epoch, Phase, Sequence
from tests.engine.mutants import mutate
from tests.engine.toy import Bench, alone, prompt, request


def arrive(bench: Bench, number: int) -> None:
    """A short request that has its first token elsewhere is handed over, if there is room for it."""
    one = request(f"new{number}", prompt(7, number), 8)
    with suppress(Overloaded):
        reservation = bench.core.reserve(one.id, one, 8)
        sequence = Sequence(one, 0, alone(one)[:1], epoch=Epoch(0, 1), blocks=reservation.blocks[:2])
        sequence.computed, sequence.phase = 7, Phase.DECODE
        bench.core.adopt(reservation, [sequence])


def newcomers_before_the_waiter(seats: int = 16) -> int:
    """Of those that are handed over after every step, for 400 steps, how many enter before one that waits
    for blocks, or for a place, has its first token; it comes when four run that end one after the other."""
    bench = Bench(total=24, budget=100, max_sequences=seats)
    for number in range(4):
        bench.core.submit(request(f"old{number}", prompt(7, number), 6 + 4 * number))
    bench.step()
    bench.core.submit(request("waits", prompt(61 if seats == 16 else 3, 9), 4))
    for number in range(400):
        bench.step()
        if bench.output("waits"):
            break
        arrive(bench, number)
    return len({one.key for one in bench.emitted if one.key.request_id.startswith("new")})


@pytest.mark.parametrize("seats", [16, 4], ids=["blocks", "places"])
def test_who_waits_has_its_tokens_before_anybody_else_comes_in(seats: int) -> None:
    assert newcomers_before_the_waiter(seats) == 0


@pytest.mark.parametrize("seats", [16, 4], ids=["blocks", "places"])
def test_else_it_would_wait_as_long_as_others_come(monkeypatch: pytest.MonkeyPatch, seats: int) -> None:
    mutate(monkeypatch, Movements, "_before", "return head", "return None")
    assert newcomers_before_the_waiter(seats) > 50


def self_preempted() -> tuple[Bench, Reservation]:
    """The only one that runs needed a block, and had to give up all that it had: the rest is reserved."""
    bench = Bench(total=8)
    bench.core.submit(request("a", prompt(12), 14))
    bench.step()
    reserved = bench.core.reserve("s", request("b", prompt(16, 1), 4), 16)
    while not bench.core.status().preemptions:
        bench.step()
    assert bench.core.status().running == 0 and bench.core.status().waiting == 1
    return bench, reserved


def test_blocks_that_somebody_had_to_give_up_are_not_given_to_who_comes() -> None:
    bench, reserved = self_preempted()
    with pytest.raises(Overloaded, match="5 go first"):
        bench.core.reserve("t", request("c", prompt(3, 2), 4), 4)
    bench.core.unreserve(reserved)
    bench.drain()
    assert bench.output("a") == alone(request("a", prompt(12), 14))


def test_a_reservation_that_grows_from_nothing_does_not_overtake_either() -> None:
    bench, _ = self_preempted()
    later = bench.core.reserve("t", request("c", prompt(3, 2), 4), 0)
    with pytest.raises(Overloaded, match="5 go first"):
        bench.core.extend(later, 1)


def test_one_that_is_on_its_way_may_grow_while_somebody_waits() -> None:
    bench, reserved = self_preempted()
    assert len(bench.core.extend(reserved, 1)) == 1


def test_where_there_is_room_for_both_nobody_is_refused() -> None:
    bench = Bench()
    bench.core.submit(request("a", prompt(20), 4))
    assert bench.core.reserve("s", request("b", prompt(20, 1), 4), 20)


def test_a_higher_priority_goes_before_a_lower_that_waits() -> None:
    bench, _ = self_preempted()
    urgent = replace(request("c", prompt(3, 2), 4), priority=1)
    assert bench.core.reserve("t", urgent, 4)


def test_who_waits_for_room_at_its_longest_is_not_overtaken(monkeypatch: pytest.MonkeyPatch) -> None:
    def short_ones() -> Reservation:
        bench = Bench(total=8, policy=ReserveMax(ContinuousBatching(64)))
        bench.core.submit(request("a", prompt(4), 13))
        bench.step()
        bench.core.submit(request("b", prompt(4, 1), 17))
        bench.step()
        return bench.core.reserve("s", request("c", prompt(4, 2), 5), 4)

    with pytest.raises(Overloaded, match="longest"):
        short_ones()
    mutate(monkeypatch, Longest, "admits", "self._own(head)", "0")
    assert short_ones()
