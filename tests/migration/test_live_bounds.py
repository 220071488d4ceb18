"""What a live migration copies, what bounds it, and why it may be called off; the request never minds."""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest

from engine.core import EngineCore
from engine.request import Request
from engine.sequence import Epoch, Phase, Sequence
from migration.session import Bounds
from tests.engine.toy import alone, prompt, request
from tests.migration.mesh import Mesh, mesh
from tests.migration.pair import BOUND

PACE = 0.004
STAGED = Bounds(last_blocks=2, pause=1e-9)


def running(all_: Mesh, one: Request, tokens: int = 3) -> Request:
    """Start at d0 and let so many tokens come."""
    all_.start("d0", one)
    all_.until(one, tokens)
    return one


def length(all_: Mesh, one: Request) -> int:
    return sum(emitted.key.request_id == one.id for _, emitted in all_.home.pushed)


def copies_take(all_: Mesh, one: Request, tokens: int, times: int) -> None:
    """Each of the next copies out of d0 lasts until so many more tokens have come."""
    left = [times]

    def wait() -> None:
        if left[0]:
            left[0] -= 1
            until = length(all_, one) + tokens
            all_.home.wait(lambda: length(all_, one) >= until)

    all_.nodes["d0"].engine.store.before_gather = wait


def hold(all_: Mesh) -> Callable[[], None]:
    """Copies out of d0 wait until what is returned is called."""
    go = threading.Event()
    reached = threading.Event()

    def wait() -> None:
        reached.set()
        assert go.wait(BOUND)

    all_.nodes["d0"].engine.store.before_gather = wait
    all_.reached = reached  # type: ignore[attr-defined]
    return go.set


def test_a_request_is_copied_in_stages_while_it_runs() -> None:
    with mesh(pace=PACE, bounds=STAGED) as all_:
        one = running(all_, request("r", prompt(33), 120))
        copies_take(all_, one, 12, times=2)
        moved = all_.moved(one, "d0", "d1")
        all_.served(one)
        assert moved.committed
        assert moved.stages == 4
        assert moved.blocks == -(-(moved.tokens - 1) // 4), "each block was sent once"


def test_a_request_that_outruns_its_copies_stays() -> None:
    with mesh(pace=PACE, bounds=STAGED) as all_:
        one = running(all_, request("r", prompt(33), 120))
        copies_take(all_, one, 12, times=9)
        moved = all_.moved(one, "d0", "d1")
        all_.served(one)
        assert "behind after 3 live stages" in moved.outcome
        assert all_.home.pushers(one) == {"d0"}


def test_a_short_predicted_pause_is_enough_for_the_last_copy() -> None:
    with mesh(pace=PACE, bounds=Bounds(last_blocks=1, pause=100.0)) as all_:
        one = running(all_, request("r", prompt(33), 120))
        copies_take(all_, one, 12, times=1)
        assert all_.moved(one, "d0", "d1").stages == 2
        all_.served(one)


def test_a_request_that_waits_moves_without_a_copy() -> None:
    with mesh(pace=PACE, blocks=16) as all_:
        big = running(all_, request("big", prompt(40), 20))
        late = request("late", prompt(30, 1), 10)
        all_.start("d0", late)
        moved = all_.moved(late, "d0", "d1")
        all_.served(big, late)
        assert (moved.committed, moved.blocks, moved.stages) == (True, 0, 0)
        assert all_.home.pushers(late) == {"d1"}


@pytest.mark.parametrize("n", [1, 3])
def test_a_request_in_prefill_moves_between_two_chunks(n: int) -> None:
    with mesh(pace=0.005) as all_:
        one = request("r", prompt(320), 8, n=n)
        all_.start("d0", one)
        moved = all_.moved(one, "d0", "d1")
        all_.served(one)
        assert moved.committed
        assert moved.tokens == 320
        assert all_.home.pushers(one) == {"d1"}
        assert 0 < all_.nodes["d1"].role.status().result(BOUND).prompt_tokens < 320


def test_a_recovered_request_moves_with_some_of_its_choices_not_begun() -> None:
    with mesh(pace=0.005) as all_:
        one = request("r", prompt(320), 12, n=4)
        choices = [Sequence(one, 0, alone(one, 0)[:5]), Sequence(one, 2), Sequence(one, 3)]
        all_.home.open(one, Epoch(1, 0))
        all_.nodes["d0"].role.start(one, choices, Epoch(1, 0), "home").result(BOUND)
        assert all_.moved(one, "d0", "d1").committed
        assert all_.home.tail(one, 0, 5) == alone(one, 0)[5:]
        for choice in (2, 3):
            assert all_.home.output(one, choice) == alone(one, choice)
        assert {emitted.key.choice for _, emitted in all_.home.pushed} == {0, 2, 3}
        assert all_.home.pushers(one) == {"d1"}


def test_blocks_that_choices_share_are_sent_once() -> None:
    with mesh(pace=PACE) as all_:
        one = running(all_, request("r", prompt(64), 40, n=4), 2)
        moved = all_.moved(one, "d0", "d1")
        all_.served(one)
        assert moved.committed
        assert moved.blocks < 16 + 4 * (moved.tokens // 4 // 4 + 1)


def test_what_the_destination_has_cached_is_not_sent() -> None:
    with mesh(pace=PACE) as all_:
        warm = request("warm", prompt(64), 1)
        all_.start("d1", warm)
        all_.served(warm)
        one = running(all_, request("r", prompt(64), 40))
        moved = all_.moved(one, "d0", "d1")
        all_.served(one)
        assert moved.committed
        assert moved.blocks == -(-(moved.tokens - 1) // 4) - 16


def test_a_choice_that_ends_during_the_copy_leaves_its_blocks_to_others() -> None:
    with mesh(pace=PACE, blocks=60, bounds=STAGED) as all_:
        one = running(all_, request("r", prompt(30), 60, n=3))
        release = hold(all_)
        move = all_.move(one, "d0", "d1")
        assert all_.reached.wait(BOUND)  # type: ignore[attr-defined]
        engine = all_.nodes["d0"].engine
        drawn = [e for _, e in all_.home.pushed if e.key.choice == 2]
        assert engine.loop.call(lambda core: core.finish("r", 2, len(drawn))).result(BOUND)
        reached = length(all_, one) + 30
        all_.home.wait(lambda: length(all_, one) >= reached)
        release()
        assert move.result(BOUND).committed
        for choice in (0, 1):
            assert all_.home.output(one, choice) == alone(one, choice)
        all_.rest()


def test_a_request_that_ends_during_the_copy_is_not_moved() -> None:
    with mesh(pace=PACE, bounds=STAGED) as all_:
        one = running(all_, request("r", prompt(33), 12))
        release = hold(all_)
        move = all_.move(one, "d0", "d1")
        all_.home.output(one)
        release()
        assert not move.result(BOUND).committed
        all_.served(one)


def test_a_preemption_during_the_copy_calls_it_off() -> None:
    with mesh(pace=PACE, blocks=24, bounds=STAGED) as all_:
        old = running(all_, request("old", prompt(20), 60))
        one = running(all_, request("r", prompt(33, 1), 40))
        release = hold(all_)
        move = all_.move(one, "d0", "d1")
        engine = all_.nodes["d0"].engine
        all_.home.wait(lambda: length(all_, old) > 30)
        assert engine.loop.call(lambda core: core.status()).result(BOUND).preemptions
        release()
        assert not move.result(BOUND).committed
        all_.served(old, one)


def test_a_cancel_during_the_copy_frees_both_ends() -> None:
    with mesh(pace=PACE, bounds=STAGED) as all_:
        one = running(all_, request("r", prompt(33), 100))
        release = hold(all_)
        move = all_.move(one, "d0", "d1")
        assert all_.reached.wait(BOUND)  # type: ignore[attr-defined]
        assert all_.nodes["d0"].role.cancel(one.id).result(BOUND)
        release()
        assert move.result(BOUND).outcome == "aborted: cancelled"
        all_.rest()


@pytest.mark.parametrize(
    ("why", "spoil"),
    [
        ("no room", lambda core: core.reserve("another", request("b", prompt(8), 4), 56)),
        ("reserved_share", lambda core: core.reserve("another", request("b", prompt(8), 4), 24)),
    ],
)
def test_a_destination_without_room_says_so(why: str, spoil: Callable[[EngineCore], object]) -> None:
    with mesh(pace=PACE, blocks=16, bounds=Bounds(share=0.8 if why == "no room" else 0.5)) as all_:
        one = running(all_, request("r", prompt(12), 30))
        held = all_.nodes["d1"].engine.loop.call(spoil).result(BOUND)
        moved = all_.moved(one, "d0", "d1")
        all_.nodes["d1"].engine.loop.call(lambda core: core.unreserve(held)).result(BOUND)  # type: ignore[arg-type]
        assert why in moved.outcome
        all_.served(one)


def test_a_destination_that_drains_takes_nobody_until_it_is_undrained() -> None:
    with mesh(pace=PACE) as all_:
        one = running(all_, request("r", prompt(12), 80))
        all_.nodes["d1"].role.drain()
        assert "takes no new requests" in all_.moved(one, "d0", "d1").outcome
        all_.nodes["d1"].role.undrain()
        assert all_.moved(one, "d0", "d1").committed
        all_.served(one)


def test_what_cannot_be_moved_says_why() -> None:
    with mesh(pace=PACE) as all_:
        one = running(all_, request("r", prompt(12), 40))
        assert all_.moved(one, "d0", "d0").outcome == "aborted: it lives there already"
        assert all_.moved(one, "d1", "d0").outcome == "aborted: it does not live here"
        release = hold(all_)
        move = all_.move(one, "d0", "d1")
        assert all_.moved(one, "d0", "d2").outcome == "aborted: it is moving already"
        release()
        assert move.result(BOUND).committed
        all_.served(one)


@pytest.mark.parametrize("bounds", [Bounds(moves=1), Bounds(tokens=60)], ids=["count", "tokens"])
def test_moves_beyond_the_bounds_wait_their_turn(bounds: Bounds) -> None:
    with mesh(pace=PACE, bounds=bounds) as all_:
        requests = [running(all_, request(f"r{i}", prompt(40, i), 100)) for i in range(3)]
        release = hold(all_)
        moves = [all_.move(one, "d0", f"d{1 + i % 2}") for i, one in enumerate(requests)]
        assert all_.reached.wait(BOUND)  # type: ignore[attr-defined]
        others = [all_.nodes[name].engine for name in ("d1", "d2")]
        reserved = [one.loop.call(lambda core: len(core._movements.reservations)) for one in others]
        assert sum(one.result(BOUND) for one in reserved) == 1
        release()
        assert all(move.result(BOUND).committed for move in moves)
        all_.served(*requests)


def test_who_lives_here_and_who_is_leaving() -> None:
    with mesh(pace=PACE) as all_:
        one = running(all_, request("r", prompt(12), 60, n=2))
        role = all_.nodes["d0"].role
        (seen,) = role.requests().result(BOUND)
        assert (seen.request_id, seen.phase, seen.prompt_tokens, seen.moving) == ("r", "decode", 12, False)
        assert seen.output_tokens >= 6
        assert seen.blocks >= 5
        release = hold(all_)
        move = all_.move(one, "d0", "d1")
        assert all_.reached.wait(BOUND)  # type: ignore[attr-defined]
        assert [one.moving for one in role.requests().result(BOUND)] == [True]
        release()
        assert move.result(BOUND).committed
        assert role.requests().result(BOUND) == ()
        all_.served(one)


def test_closing_the_sender_during_a_copy_leaves_the_request_there() -> None:
    with mesh(pace=PACE, bounds=Bounds(moves=1)) as all_:
        requests = [running(all_, request(f"r{i}", prompt(40, i), 100)) for i in range(2)]
        release = hold(all_)
        moves = [all_.move(one, "d0", "d1") for one in requests]
        assert all_.reached.wait(BOUND)  # type: ignore[attr-defined]
        closing = threading.Thread(target=all_.nodes["d0"].ends.sender.close, args=(BOUND,))
        closing.start()
        release()
        closing.join(BOUND)
        assert not any(move.result(BOUND).committed for move in moves[1:])
        all_.served(*requests)
        assert Phase.PAUSED not in {
            Phase(one.phase) for one in all_.nodes["d0"].role.requests().result(BOUND)
        }
