"""Blocks are shared between choices and prompts, and taken back from the newest when they run out."""

from __future__ import annotations

from dataclasses import replace

import pytest

from engine.sequence import Phase
from tests.engine.toy import Bench, alone, prompt, request


def test_a_parallel_prompt_is_computed_once_and_forked_with_three_copies_for_four_choices() -> None:
    bench = Bench(block_size=16, budget=64)
    one = request("a", prompt(37), 5, n=4)
    bench.core.submit(one)
    bench.step()
    refs = {b: bench.core.pool.refs(b) for s in bench.core.sequences("a") for b in s.blocks}
    assert list(refs.values()) == [4, 4, 4]
    bench.step()
    refs = {b: bench.core.pool.refs(b) for s in bench.core.sequences("a") for b in s.blocks}
    assert sorted(refs.values()) == [1, 1, 1, 1, 4, 4]
    assert bench.core.pool.used == 6
    bench.drain()
    assert bench.runner.copies == 3
    assert sum(len(w.tokens) for p in bench.runner.plans for w in p.works) == 37 + 4 * 4
    assert [bench.output("a", choice) for choice in range(4)] == [alone(one, choice) for choice in range(4)]


def test_choices_of_a_prompt_that_fills_its_blocks_need_no_copy() -> None:
    bench = Bench(block_size=16, budget=64)
    bench.core.submit(request("a", prompt(32), 5, n=4))
    bench.drain()
    assert bench.runner.copies == 0


def test_a_repeated_prompt_is_spared_its_cached_blocks() -> None:
    bench = Bench(budget=64)
    bench.core.submit(request("a", prompt(22), 3))
    bench.drain()
    bench.core.submit(request("b", prompt(22), 3))
    bench.drain()
    assert bench.output("b") == bench.output("a")
    assert [len(w.tokens) for p in bench.runner.plans for w in p.works if w.request_id == "b"] == [2, 1, 1]
    assert {one.cached for one in bench.emitted if one.key.request_id == "b"} == {20}


def test_a_hit_on_the_whole_prompt_still_computes_its_last_token() -> None:
    bench = Bench(budget=64)
    for name in "ab":
        bench.core.submit(request(name, prompt(16), 3))
        bench.drain()
    assert bench.output("b") == bench.output("a")
    assert bench.core.status().prefix_hits == 12


def test_blocks_filled_during_decode_are_found_too() -> None:
    bench = Bench(budget=64)
    first = request("a", prompt(8), 9)
    bench.core.submit(first)
    bench.drain()
    second = request("b", [*first.prompt, *bench.output("a"), 5], 3)
    bench.core.submit(second)
    bench.drain()
    assert bench.output("b") == alone(second)
    assert bench.core.status().prefix_hits == 16


def test_a_hit_leaves_its_part_of_the_budget_to_others() -> None:
    bench = Bench(budget=16)
    bench.core.submit(request("a", prompt(16), 1))
    bench.drain()
    bench.core.submit(request("b", prompt(16), 1))
    bench.core.submit(request("c", prompt(9, 1), 1))
    bench.step()
    assert [len(work.tokens) for work in bench.runner.plans[-1].works] == [4, 9]


@pytest.mark.parametrize(("salt", "adapter"), [("other", ""), ("", "other")], ids=["salt", "adapter"])
def test_another_salt_or_adapter_finds_nothing(salt: str, adapter: str) -> None:
    bench = Bench(budget=64)
    one = request("a", prompt(16), 2)
    bench.core.submit(one)
    bench.drain()
    bench.core.submit(replace(one, id="b", salt=salt, adapter=adapter))
    bench.drain()
    assert bench.core.status().prefix_hits == 0


def test_without_a_prefix_cache_nothing_is_kept() -> None:
    bench = Bench(budget=64, prefix_cache=False)
    for name in "ab":
        bench.core.submit(request(name, prompt(16), 3))
        bench.drain()
    assert bench.core.status().prefix_hits == 0
    assert bench.core.pool.free == bench.core.pool.total


def test_a_full_pool_preempts_the_newest_and_loses_no_token() -> None:
    bench = Bench(total=12, budget=64)
    requests = [request(f"r{i}", prompt(9, i), 20, seed=i) for i in range(3)]
    for one in requests:
        bench.core.submit(one)
    while not bench.core.status().preemptions:
        bench.step()
    assert bench.core.sequences("r2")[0].phase is Phase.WAITING
    assert bench.core.sequences("r2")[0].blocks == []
    assert len(bench.core.sequences("r2")[0].output) > 0
    assert bench.outcomes[-1].dropped == ("r2",)
    bench.drain()
    assert [bench.output(one.id) for one in requests] == [alone(one) for one in requests]


def test_a_full_pool_preempts_the_newest_of_the_lowest_priority() -> None:
    bench = Bench(total=12, budget=64)
    plain = [request(f"r{i}", prompt(9, i), 20, seed=i) for i in range(3)]
    requests = [replace(one, priority=priority) for one, priority in zip(plain, (0, 0, 7), strict=True)]
    for one in requests:
        bench.core.submit(one)
    while not bench.core.status().preemptions:
        bench.step()
    assert [one.request.id for one in bench.core.running] == ["r2", "r0"]
    assert bench.core.sequences("r1")[0].phase is Phase.WAITING
    bench.drain()
    assert [bench.output(one.id) for one in requests] == [alone(one) for one in requests]


@pytest.mark.parametrize("prefix_cache", [True, False])
def test_preemption_after_any_number_of_tokens_changes_none(prefix_cache: bool) -> None:
    """The longer the older request's prompt, the sooner the younger one has to give its blocks up."""
    points = set()
    for length in range(1, 30):
        bench = Bench(total=10, budget=64, prefix_cache=prefix_cache)
        old, young = request("old", prompt(length), 38 - length, seed=2), request("young", prompt(2, 1), 24)
        bench.core.submit(old)
        bench.core.submit(young)
        while bench.step() is not None:
            for sequence in bench.core.sequences("young"):
                if sequence.phase is Phase.WAITING and sequence.preemptions:
                    points.add(len(sequence.output))
        assert bench.output("old") == alone(old)
        assert bench.output("young") == alone(young)
    assert len(points) >= 10


def test_a_preempted_request_goes_before_those_who_wait() -> None:
    bench = Bench(total=8, budget=64)
    for i, length in enumerate((9, 9, 3)):
        bench.core.submit(request(f"r{i}", prompt(length, i), 14))
    bench.drain()
    ends = [one.key.request_id for one in bench.emitted if one.finish]
    assert bench.core.status().preemptions > 0
    assert ends == ["r0", "r1", "r2"]


def test_a_request_that_needs_every_block_runs() -> None:
    bench = Bench(total=8)
    one = request("a", prompt(20), 13)
    bench.core.submit(one)
    bench.drain()
    assert bench.output("a") == alone(one)
