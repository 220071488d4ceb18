"""Who is handed over does not overtake who waits here."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace

import pytest

from decode_pool.continuous_batching import ContinuousBatching
from engine.core import Reservation
from engine.cost_model import LinearCost
from engine.errors import Overloaded
from engine.movements import Movements
from engine.queues.mlfq import Levels, MultiLevelQueue
from engine.reserve_max import Longest, ReserveMax
from engine.sequence import Epoch, Phase, Sequence
from engine.tiers import TierSettings
from tests.engine.mutants import mutate
from tests.engine.toy import Bench, alone, prompt, request


def arrive(bench: Bench, number: int) -> None:
    """A short request that has its first token elsewhere is handed over, if there is room for it."""
    one = request(f"new{number}", prompt(7, number), 8)
    with suppress(Overloaded):
        reservation = bench.core.reserve(one.id, one, 8, handoff=True)
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
        bench.core.reserve("t", request("c", prompt(3, 2), 4), 4, handoff=True)
    bench.core.unreserve(reserved)
    bench.drain()
    assert bench.output("a") == alone(request("a", prompt(12), 14))


def test_one_that_is_moved_while_it_runs_takes_what_room_there_is() -> None:
    bench, _ = self_preempted()
    assert bench.core.reserve("t", request("c", prompt(3, 2), 4), 4)
    later = bench.core.reserve("u", request("d", prompt(3, 3), 4), 0)
    assert len(bench.core.extend(later, 1)) == 1


def test_one_that_is_on_its_way_may_grow_while_somebody_waits() -> None:
    bench, reserved = self_preempted()
    assert len(bench.core.extend(reserved, 1)) == 1


def test_where_there_is_room_for_both_nobody_is_refused() -> None:
    bench = Bench()
    bench.core.submit(request("a", prompt(20), 4))
    assert bench.core.reserve("s", request("b", prompt(20, 1), 4), 20, handoff=True)


def test_a_higher_priority_goes_before_a_lower_that_waits() -> None:
    bench, _ = self_preempted()
    urgent = replace(request("c", prompt(3, 2), 4), priority=1)
    assert bench.core.reserve("t", urgent, 4, handoff=True)


def test_who_waits_for_room_at_its_longest_is_not_overtaken(monkeypatch: pytest.MonkeyPatch) -> None:
    def short_ones() -> Reservation:
        bench = Bench(total=8, policy=ReserveMax(ContinuousBatching(64)))
        bench.core.submit(request("a", prompt(4), 13))
        bench.step()
        bench.core.submit(request("b", prompt(4, 1), 17))
        bench.step()
        return bench.core.reserve("s", request("c", prompt(4, 2), 5), 4, handoff=True)

    with pytest.raises(Overloaded, match="longest"):
        short_ones()
    mutate(monkeypatch, Longest, "admits", "self._own(head)", "0")
    assert short_ones()


@pytest.mark.parametrize("passed_over", [True, False])
def test_long_ones_that_levels_have_swapped_out_do_not_shut_a_short_one_out(
    monkeypatch: pytest.MonkeyPatch, passed_over: bool
) -> None:
    if not passed_over:
        mutate(monkeypatch, Movements, "_before", "head.tier is Tier.HOST", "False")
    levels = Levels(quantum=2.0, batch=3, starvation=1e9)
    both = MultiLevelQueue(levels, ContinuousBatching(64), LinearCost(0.001, 0, 0.001))
    tiers = TierSettings(slots=100, idle=0.2, share=0)
    bench = Bench(total=60, queue=both, policy=both, tiers=tiers, max_sequences=8, prefix_cache=False)
    for number in range(6):
        bench.core.submit(request(f"long{number}", prompt(17, number), 110))
    refused = 0
    for number in range(150):
        bench.step()
        one = request(f"new{number}", prompt(7, number), 8)
        try:
            bench.core.unreserve(bench.core.reserve(one.id, one, 8, handoff=True))
        except Overloaded:
            refused += 1
    assert bench.core.tiers.swapped_out
    assert (refused < 20) == passed_over
