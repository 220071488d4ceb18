"""Prompts go through in chunks that end where blocks end, under a budget on the whole batch."""

from __future__ import annotations

import pytest

from engine.sequence import Phase, Sequence
from prefill_pool.chunked_prefill import ChunkedPrefill
from tests.engine.mutants import mutate
from tests.engine.policies import check_many
from tests.engine.toy import Bench, alone, prompt, request

BUDGETS = (1, 3, 16, 40, 256)


def policies(align: int) -> dict[int, ChunkedPrefill]:
    return {budget: ChunkedPrefill(budget, align) for budget in BUDGETS}


def chunks(budget: int, align: int, length: int, decodes: int = 0) -> list[int]:
    """The chunks of one prompt beside a number of decodes."""
    running = [
        Sequence(request(f"d{i}", prompt(4)), output=[1], computed=4, phase=Phase.DECODE)
        for i in range(decodes)
    ]
    one = Sequence(request("a", prompt(length)), phase=Phase.PREFILL)
    sizes = []
    while one.remaining:
        sizes.append(ChunkedPrefill(budget, align).share([*running, one], [], 0.0)[-1].tokens)
        one.computed += sizes[-1]
    return sizes


@pytest.mark.parametrize("align", [1, 16])
def test_invariants_hold_in_any_state(align: int, full: bool) -> None:
    check_many(policies(align), 10_000 if full else 1_000)


def test_a_prompt_is_cut_at_the_budget() -> None:
    assert chunks(64, 16, 150) == [64, 64, 22]


def test_a_chunk_that_is_not_the_last_ends_at_a_block() -> None:
    assert chunks(64, 16, 150, decodes=5) == [48, 48, 54]


def test_a_budget_below_a_block_is_used_as_it_is() -> None:
    assert chunks(16, 16, 40, decodes=3) == [13, 13, 13, 1]


def test_decodes_that_fill_the_budget_leave_a_prompt_a_token() -> None:
    assert chunks(16, 16, 3, decodes=20) == [1, 1, 1]


def test_after_a_hit_within_a_block_the_next_chunk_ends_at_a_block_again() -> None:
    one = Sequence(request("a", prompt(100)), computed=5, phase=Phase.PREFILL)
    assert ChunkedPrefill(32, 16).share([one], [], 0.0)[0].tokens == 27


def test_the_next_prompt_starts_in_the_step_in_which_the_one_before_it_ends() -> None:
    running = [Sequence(request("a", prompt(40)), computed=32, phase=Phase.PREFILL)]
    queue = [Sequence(request("b", prompt(40)))]
    assert [share.tokens for share in ChunkedPrefill(32, 16).share(running, queue, 0.0)] == [8, 16]


def test_nobody_else_starts_while_a_prompt_is_cut() -> None:
    queue = [Sequence(request(name, prompt(40))) for name in "ab"]
    assert [share.sequence.request.id for share in ChunkedPrefill(39, 16).share([], queue, 0.0)] == ["a"]


@pytest.mark.parametrize("budget", [1, 5, 16, 64])
def test_chunks_change_no_token(budget: int) -> None:
    bench = Bench(policy=ChunkedPrefill(budget, 4), total=80)
    requests = [request(f"r{i}", prompt(37 + i, i), 6, seed=i) for i in range(4)]
    for one in requests:
        bench.core.submit(one)
    bench.drain()
    assert [bench.output(one.id) for one in requests] == [alone(one) for one in requests]


MUTANTS = {
    "budget counts prefill tokens only": ("share", "self.token_budget - len(shares)", "self.token_budget"),
    "no clamp": ("share", "max(self.token_budget - len(shares), 1)", "self.token_budget - len(shares)"),
    "new requests before partial prefills": (
        "share",
        "chain((one for one in running if one.phase is Phase.PREFILL), waiting)",
        "chain(waiting, (one for one in running if one.phase is Phase.PREFILL))",
    ),
    "skip who is cut": ("share", "break", "continue"),
    "align to nothing": ("_chunk", "if left - over >= self.align else left", ""),
}


@pytest.mark.parametrize("name", MUTANTS)
def test_a_wrong_policy_breaks_an_invariant(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    mutate(monkeypatch, ChunkedPrefill, *MUTANTS[name])
    with pytest.raises(AssertionError):
        check_many(policies(16), 1_000)
