"""Every decode runs in every step; prompts get what the token budget leaves, in order."""

from __future__ import annotations

import pytest

from decode_pool.continuous_batching import ContinuousBatching
from engine.batch import Share
from engine.sequence import Phase, Sequence
from tests.engine.mutants import mutate
from tests.engine.policies import check_many
from tests.engine.toy import prompt, request

BUDGETS = (1, 3, 16, 40, 256)


def policies() -> dict[int, ContinuousBatching]:
    return {budget: ContinuousBatching(budget) for budget in BUDGETS}


def waiting(name: str, length: int, cached: int = 0) -> Sequence:
    return Sequence(request(name, prompt(length)), cached=cached)


def decoding(name: str) -> Sequence:
    return Sequence(request(name, prompt(4)), output=[1], computed=4, phase=Phase.DECODE)


def prefilling(name: str, length: int, computed: int) -> Sequence:
    return Sequence(request(name, prompt(length)), computed=computed, phase=Phase.PREFILL)


def test_invariants_hold_in_any_state(full: bool) -> None:
    check_many(policies(), 10_000 if full else 1_000)


def test_several_prompts_share_a_step() -> None:
    first, second = waiting("a", 5), waiting("b", 9)
    shares = ContinuousBatching(16).share([], [first, second], 0.0)
    assert shares == [Share(first, 5), Share(second, 9)]


def test_the_last_prompt_gets_what_is_left_of_the_budget() -> None:
    running, late = [decoding("a"), prefilling("b", 20, 14)], waiting("c", 50)
    shares = ContinuousBatching(16).share(running, [late], 0.0)
    assert [share.tokens for share in shares] == [1, 6, 9]


def test_a_cached_prefix_costs_no_budget() -> None:
    first, second = waiting("a", 20, cached=16), waiting("b", 9)
    assert [share.tokens for share in ContinuousBatching(16).share([], [first, second], 0.0)] == [4, 9]


def test_decodes_run_even_where_they_alone_exceed_the_budget_and_a_prompt_goes_on() -> None:
    running, late = [decoding(str(i)) for i in range(5)], waiting("w", 5)
    shares = ContinuousBatching(3).share(running, [late], 0.0)
    assert [share.tokens for share in shares] == [1] * 6 and shares[-1].sequence is late


def test_no_more_of_the_queue_is_looked_at_than_fits() -> None:
    """A long queue costs nothing: the sequence after the last share is not asked for."""
    queue = iter([waiting("a", 16), waiting("b", 16), waiting("c", 16)])
    ContinuousBatching(32).share([], queue, 0.0)
    assert next(queue).request.id == "c"


MUTANTS = {
    "budget counts prefill tokens only": ("self.token_budget - len(shares)", "self.token_budget"),
    "no clamp": ("max(self.token_budget - len(shares), 1)", "self.token_budget - len(shares)"),
    "new requests before partial prefills": (
        "chain((one for one in running if one.phase is Phase.PREFILL), waiting)",
        "chain(waiting, (one for one in running if one.phase is Phase.PREFILL))",
    ),
    "chunk larger than the budget": ("min(due(sequence), left)", "due(sequence)"),
    "a decode left out": ("if one.phase is Phase.DECODE]", "if one.phase is Phase.DECODE][:3]"),
    "chunk of nothing": ("if left == 0:", "if left < 0:"),
}


@pytest.mark.parametrize("name", MUTANTS)
def test_a_wrong_policy_breaks_an_invariant(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    mutate(monkeypatch, ContinuousBatching, "share", *MUTANTS[name])
    with pytest.raises(AssertionError):
        check_many(policies(), 1_000)
