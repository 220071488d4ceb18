"""A handoff between two real instances gives the tokens that no handoff would have given, whatever fails."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from engine.request import Request
from engine.sequence import Epoch
from migration.session import Timeouts
from migration.transport import Address
from tests.engine.toy import alone, prompt, request
from tests.migration.pair import BOUND, QUICK, Pair, pair
from tests.migration.proxy import BACK, FORTH, Proxy

BOTH = pytest.mark.parametrize("forced", ["shm", "tcp"])


def served(both: Pair, *requests: Request) -> None:
    """Every choice has the tokens it would have alone."""
    for one in requests:
        for choice in range(one.sampling.n):
            assert both.home.output(one, choice) == alone(one, choice)


def wait_until(reached: Callable[[], bool], step: float = 0.002) -> bool:
    pause = threading.Event()
    for _ in range(int(BOUND / step)):
        if reached():
            return True
        pause.wait(step)
    return False


def handed(both: Pair, count: int) -> None:
    """So many requests were handed over, and nothing of them is left at the source."""
    both.rest()
    assert wait_until(lambda: both.sender.handed == count)


def reasons(both: Pair) -> str:
    return " ".join(reason for _, reason in both.sender.failures)


@contextmanager
def through_proxy(**options: object) -> Iterator[tuple[Pair, Proxy]]:
    """A pair whose connection goes through a proxy."""
    proxies: list[Proxy] = []

    def reach(address: Address) -> Address:
        proxies.append(Proxy(address.tcp))
        return replace(address, tcp=proxies[0].address)

    try:
        with pair("tcp", reach=reach, **options) as both:
            yield both, proxies[0]
    finally:
        for one in proxies:
            one.close()


@BOTH
def test_tokens_are_those_of_an_unmoved_run(forced: str) -> None:
    with pair(forced, blocks=(256, 256)) as both:
        requests = [
            request(f"r{i}", prompt(length, i), 12, n=1 + i % 3)
            for i, length in enumerate([1, 3, 4, 5, 15, 16, 17, 33, 64, 70])
        ]
        both.start(*requests)
        served(both, *requests)
        handed(both, len(requests))
        assert both.prefill.status().result(BOUND).handoffs == len(requests)


@BOTH
def test_the_first_token_comes_from_the_source_and_the_rest_from_the_destination(forced: str) -> None:
    with pair(forced) as both:
        one = request("r", prompt(21), 6)
        both.start(one)
        served(both, one)
        assert [instance for instance, _ in both.home.pushed] == ["p", *"ddddd"]


def test_the_first_token_does_not_wait_for_the_transfer() -> None:
    with pair() as both:
        one = request("r", prompt(10), 6)
        both.p.store.before_gather = lambda: both.home.wait(lambda: bool(both.home.pushed))
        both.start(one)
        served(both, one)
        handed(both, 1)


def test_finished_chunks_leave_while_the_next_one_is_computed() -> None:
    with pair() as both:
        arrived = threading.Semaphore(0)
        scatter = both.d.store.scatter

        def seen(blocks: list[int], data: memoryview) -> None:
            scatter(blocks, data)
            arrived.release(len(blocks))

        both.d.store.scatter = seen  # type: ignore[method-assign, assignment]
        both.p.runner.hold()
        one = request("r", prompt(48), 4)
        both.start(one)
        for _ in range(2):
            both.p.runner.permit()
            for _ in range(4):
                assert arrived.acquire(timeout=BOUND), "a chunk of four blocks did not come"
        both.p.runner.permit()
        served(both, one)


def test_what_the_destination_has_cached_is_not_sent() -> None:
    with pair() as both:
        first, second = request("a", prompt(40), 3), request("b", prompt(40), 3, seed=2)
        both.start(first)
        served(both, first)
        both.rest()
        sent = both.d.store.scattered
        both.start(second)
        served(both, second)
        both.rest()
        assert (sent, both.d.store.scattered - sent) == (10, 0)
        handed(both, 2)


def test_blocks_that_choices_share_are_sent_once() -> None:
    with pair() as both:
        one = request("r", prompt(22), 5, n=4)
        both.start(one)
        served(both, one)
        assert both.d.store.scattered == 6


def test_more_requests_than_sessions_wait_their_turn() -> None:
    with pair(max_sessions=2, blocks=(256, 256)) as both:
        requests = [request(f"r{i}", prompt(20, i), 5) for i in range(12)]
        both.start(*requests)
        served(both, *requests)
        handed(both, 12)


def test_a_request_that_ends_with_its_first_token_is_not_moved() -> None:
    with pair() as both:
        one = request("r", prompt(20), 1)
        both.start(one)
        served(both, one)
        handed(both, 0)


@BOTH
def test_a_destination_without_room_leaves_the_request_where_it_is(forced: str) -> None:
    with pair(forced, blocks=(64, 8)) as both:
        one = request("r", prompt(24), 4)
        blocker = request("blocker", prompt(8), 4)
        held = both.d.loop.call(lambda core: core.reserve("another", blocker, 12)).result(BOUND)
        both.start(one)
        served(both, one)
        both.d.loop.call(lambda core: core.unreserve(held)).result(BOUND)
        assert both.home.pushers(one) == {"p"}
        assert "no room" in reasons(both)
        assert both.prefill.status().result(BOUND).handoffs_failed == 1


def test_a_peer_that_nobody_listens_for_leaves_the_request_where_it_is() -> None:
    with pair("tcp", reach=lambda address: replace(address, tcp="127.0.0.1:1")) as both:
        one = request("r", prompt(24), 4)
        both.start(one)
        served(both, one)
        assert both.home.pushers(one) == {"p"}
        assert "cannot connect" in reasons(both)


def test_a_wrong_secret_is_refused_by_name() -> None:
    with pair(secrets=(b"between us", b"another")) as both:
        one = request("r", prompt(24), 4)
        both.start(one)
        served(both, one)
        assert "secret" in reasons(both)


def test_a_connection_that_is_cut_in_a_copy_loses_nothing_and_the_next_request_connects_again() -> None:
    with through_proxy(padding=1 << 16) as (both, proxy):
        one, two = request("one", prompt(40), 5), request("two", prompt(41, 1), 5)
        both.p.runner.hold()
        both.start(one)
        both.p.runner.permit()
        proxy.wait(4 << 16)
        proxy.cut()
        both.p.runner.permit(100)
        served(both, one)
        assert both.home.pushers(one) == {"p"}
        both.start(two)
        served(both, two)
        handed(both, 1)
        assert proxy.connections == 2


def test_a_damaged_chunk_is_sent_again_and_the_connection_goes_on() -> None:
    with through_proxy(padding=1 << 14) as (both, proxy):
        one, two = request("one", prompt(40), 5), request("two", prompt(41, 1), 5)
        both.p.runner.hold()
        both.start(one)
        assert wait_until(lambda: not both.d.idle())
        proxy.flip(1 << 14)
        both.p.runner.permit(100)
        served(both, one)
        both.start(two)
        served(both, two)
        handed(both, 2)
        assert len(both.p.store.gathered) > both.d.store.scattered
        assert proxy.connections == 1


def test_a_damaged_header_ends_the_connection() -> None:
    with through_proxy(padding=1 << 14) as (both, proxy):
        one = request("one", prompt(40), 5)
        both.p.runner.hold()
        both.start(one)
        assert wait_until(lambda: not both.d.idle())
        proxy.flip(30)
        both.p.runner.permit(100)
        served(both, one)
        handed(both, 0)


def test_a_claim_that_the_home_refuses_leaves_the_request_at_the_source() -> None:
    with pair() as both:
        both.home.answer = lambda instance, epoch: False if instance == "d" else None
        one = request("r", prompt(24), 6)
        both.start(one)
        served(both, one)
        assert both.home.pushers(one) == {"p"}
        assert both.home.owner[one.id] == (Epoch(0, 2), "p")


def test_a_home_that_is_away_for_a_moment_is_asked_again() -> None:
    with pair() as both:
        answers = iter([OSError("away"), OSError("away")])

        def answer(instance: str, epoch: Epoch) -> bool | None:
            for error in answers:
                raise error
            return None

        both.home.answer = answer
        one = request("r", prompt(24), 6)
        both.start(one)
        served(both, one)
        handed(both, 1)


@pytest.mark.parametrize("finished", [False, True])
def test_a_commit_whose_answer_is_lost_is_settled_by_the_home(finished: bool) -> None:
    with through_proxy(timeouts=replace(QUICK, commit=0.2)) as (both, proxy):

        def answer(instance: str, epoch: Epoch) -> bool | None:
            if instance == "d":
                proxy.stall(BACK)
            return None

        both.home.answer = answer
        one = request("r", prompt(24), 20)
        if not finished:
            both.d.runner.hold()
        both.start(one)
        both.home.wait(lambda: [instance for instance, _, _ in both.home.claims] == ["d", "p"])
        if not finished:
            both.d.runner.permit(100)
        served(both, one)
        assert both.home.owner[one.id] == ((Epoch(0, 1), "d") if finished else (Epoch(0, 2), "p"))
        proxy.cut()


def test_a_source_that_falls_silent_loses_its_reservation_with_the_lease() -> None:
    times = Timeouts(reserve=5.0, chunk=5.0, commit=0.2, lease=0.3, stall=5.0, retry=0.02)
    with through_proxy(timeouts=times) as (both, proxy):
        both.p.runner.hold()
        one = request("r", prompt(24), 4)
        both.start(one)
        assert wait_until(lambda: not both.d.idle())
        proxy.stall(FORTH, BACK)
        both.d.rest()
        assert wait_until(lambda: both.receiver.lease_expirations == 1)
        both.p.runner.permit(100)
        served(both, one)
        assert both.home.pushers(one) == {"p"}


@BOTH
def test_a_cancel_in_a_copy_frees_both_ends(forced: str) -> None:
    with pair(forced) as both:
        both.p.runner.hold()
        one = request("r", prompt(48), 4)
        both.start(one)
        both.p.runner.permit()
        assert wait_until(lambda: both.d.store.scattered > 0)
        cancelled = both.prefill.cancel(one.id)
        both.p.runner.permit(100)
        assert cancelled.result(BOUND)
        both.rest()
        assert not both.home.finished
        assert both.receiver.lease_expirations == 0


def test_a_cancel_at_the_destination_ends_the_movement_there() -> None:
    with pair() as both:
        both.p.runner.hold()
        one = request("r", prompt(48), 4)
        both.start(one)
        both.p.runner.permit()
        assert wait_until(lambda: both.d.store.scattered > 0)
        both.decode.cancel(one.id).result(BOUND)
        both.d.rest()
        both.p.runner.permit(100)
        served(both, one)


def test_a_destination_that_drains_takes_no_new_movements() -> None:
    with pair() as both:
        both.decode.drain()
        one = request("r", prompt(24), 4)
        both.start(one)
        served(both, one)
        assert both.home.pushers(one) == {"p"}


def test_closing_the_sender_in_a_copy_leaves_the_request_at_the_source() -> None:
    with pair() as both:
        both.p.runner.hold()
        one = request("r", prompt(48), 4)
        both.start(one)
        both.p.runner.permit()
        assert wait_until(lambda: both.d.store.scattered > 0)
        both.sender.close(BOUND)
        both.p.runner.permit(100)
        served(both, one)
        assert both.home.pushers(one) == {"p"}


def test_closing_the_receiver_in_a_copy_leaves_the_request_at_the_source() -> None:
    with pair() as both:
        both.p.runner.hold()
        one = request("r", prompt(48), 4)
        both.start(one)
        both.p.runner.permit()
        assert wait_until(lambda: both.d.store.scattered > 0)
        both.receiver.close(BOUND)
        both.p.runner.permit(100)
        served(both, one)
        assert both.home.pushers(one) == {"p"}


@BOTH
def test_a_caller_that_cannot_be_let_in_shuts_nobody_else_out(
    forced: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As where the process has all the threads or descriptors for a moment that it may have."""
    failures = [OSError(24, "Too many open files"), RuntimeError("can't start new thread")]

    def failing(self: threading.Thread) -> None:
        if "-from-" in self.name and failures:
            raise failures.pop()
        started(self)

    started = threading.Thread.start
    with pair(forced) as both:
        monkeypatch.setattr(threading.Thread, "start", failing)
        for number in range(50):
            one = request(f"r{number}", prompt(30, number), 4)
            both.start(one)
            served(both, one)
            both.rest()
            if both.sender.handed:
                break
        assert not failures
        assert wait_until(lambda: both.sender.handed == 1)


@BOTH
def test_nothing_is_left_behind(forced: str) -> None:
    def descriptors() -> int:
        return len(os.listdir("/proc/self/fd"))

    def names() -> set[str]:
        lines = Path("/proc/net/unix").read_text().splitlines()
        return {line.split()[-1] for line in lines if "@tandem" in line}

    before, memory = descriptors(), set(os.listdir("/dev/shm"))
    with pair(forced) as both:
        requests = [request(f"r{i}", prompt(30, i), 4) for i in range(4)]
        both.start(*requests)
        served(both, *requests)
        if forced == "shm":
            assert any(f"-{os.getpid()}-" in name for name in names())
    assert descriptors() == before
    assert set(os.listdir("/dev/shm")) <= memory
    assert not any(f"-{os.getpid()}-" in name for name in names())
