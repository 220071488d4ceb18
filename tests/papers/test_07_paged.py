"""PagedAttention: what blocks on demand are worth in memory, and how few a fork copies.

That paged attention computes what dense attention does is tested with the kernels, and that preemption
changes no token with the engine.
"""

from __future__ import annotations

import pytest

from decode_pool.continuous_batching import ContinuousBatching
from engine.tables import BlockTables
from simulator.papers import paged
from tests.engine.mutants import mutate
from tests.engine.toy import Bench, prompt, request


def fork() -> tuple[int, list[int], int]:
    """(blocks of four choices of a prompt of 37 tokens, readers of the first two, copies when they part)."""
    bench = Bench(total=64, block_size=16, policy=ContinuousBatching(64))
    bench.core.submit(request("r", prompt(37), 8, n=4))
    bench.step()
    plan = bench.core.plan(5.0)
    assert plan is not None
    bench.core.commit(plan, bench.runner.run(plan), 6.0)
    tables = [one.blocks for one in bench.core.sequences("r")]
    readers = [bench.core.pool.refs(block) for block in tables[0][:2]]
    return len({block for table in tables for block in table}), readers, len(plan.copies)


def test_four_choices_of_one_prompt_copy_its_last_block_three_times() -> None:
    """Six blocks in all, not twelve: two full ones have four readers each, the last owner writes in place."""
    assert fork() == (6, [4, 4], 3)


def test_to_write_where_others_read_would_be_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    mutate(monkeypatch, BlockTables, "grow", "> 1:", "> 99:")
    assert fork() != (6, [4, 4], 3)


@pytest.fixture(scope="module")
def running() -> dict[str, float]:
    return {arm: paged.concurrency(paged.run(arm, 50.0, 250, 1)) for arm in ("paged", "oracle", "max")}


def test_more_requests_run_than_with_reservations_of_the_true_length(running: dict[str, float]) -> None:
    """Published: 2.2 times Orca's oracle, with buddy rounding."""
    assert running["paged"] >= 1.7 * running["oracle"]


def test_many_more_run_than_with_reservations_of_the_longest(running: dict[str, float]) -> None:
    """Published: 4.3 times."""
    assert running["paged"] >= 4.0 * running["max"]


def test_less_than_a_block_of_each_request_is_wasted() -> None:
    """Useful is what holds a token: 96.3 % in the paper."""
    cluster = paged.run("paged", 50.0, 120, 1)
    sizes = [
        one.arrival.prompt_tokens + one.arrival.output_tokens for one in cluster.records.records.values()
    ]
    held = sum(-(-size // 16) * 16 for size in sizes)
    assert sum(sizes) / held >= 0.963
