"""Sarathi-Serve: a budget from the objective, no decode held back, far lower gaps at the same load."""

from __future__ import annotations

from random import Random

import pytest

from decode_pool.stall_free import StallFree
from engine.batch import Share
from engine.cost_model import Batch, LinearCost
from engine.sequence import Phase
from simulator.papers import sarathi_serve
from simulator.papers.arms import MISTRAL_7B
from tests.engine.mutants import mutate
from tests.engine.policies import state
from tests.engine.toy import Bench, alone, prompt, request

TBTS, LEAST = (0.0146, 0.0105), 4
"""Objectives: one that 128 tokens just meet and 130 don't, and one that no step meets."""


def broken(seed: int) -> set[str]:
    """Which of the algorithm's invariants do not hold in a random state."""
    running, waiting = state(Random(seed))
    policies = {tbt: StallFree(MISTRAL_7B, tbt, tile=32, most=512, least=LEAST) for tbt in TBTS}
    found = (wrong(one.share(running, waiting, 0.0), running, waiting, tbt) for tbt, one in policies.items())
    return {*found} - {""}


def wrong(shares: list[Share], running: list, waiting: list, tbt: float) -> str:  # type: ignore[type-arg]
    """The first invariant that does not hold, "" if all do."""
    given = [share.sequence for share in shares]
    decodes = [one for one in running if one.phase is Phase.DECODE]
    partial = [one for one in running if one.phase is Phase.PREFILL]
    if any(one not in given for one in decodes):
        return "a decode is held back"
    tokens = sum(share.tokens for share in shares)
    context = sum(len(one) for one in decodes)
    cost = MISTRAL_7B.seconds(Batch(((tokens - len(decodes), 0),) if tokens > len(decodes) else (),
                                    len(decodes), context))  # fmt: skip
    if tokens > len(decodes) + LEAST and decodes and cost > tbt:
        return "the objective is missed"
    if tokens == len(decodes) and (partial or waiting):
        return "no prompt goes on"
    if tokens < len(decodes) or any(share.tokens < 1 for share in shares):
        return "an empty share"
    if any(one in given for one in waiting) and any(one not in given for one in partial):
        return "a new prompt before one under way"
    prompts = [one for one in (*partial, *waiting) if one in given]
    if prompts != [one for one in given if one in prompts]:
        return "out of order"
    return ""


def test_every_step_keeps_the_algorithms_invariants(full: bool) -> None:
    for seed in range(10_000 if full else 500):
        assert not broken(seed)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("in running if one.phase is Phase.DECODE", "in running[1:] if one.phase is Phase.DECODE"),
        ("(one for one in running if one.phase is Phase.PREFILL), waiting",
         "waiting, (one for one in running if one.phase is Phase.PREFILL)"),
        ("max(self.least, budget - decodes)", "max(self.least, budget)"),
        ("max(self.least, budget - decodes)", "budget - decodes"),
    ],
    ids=["a decode held back", "new prompts first", "a budget for prompts alone", "no clamp"],
)  # fmt: skip
def test_the_invariants_reject_wrong_policies(monkeypatch: pytest.MonkeyPatch, old: str, new: str) -> None:
    mutate(monkeypatch, StallFree, "share", old, new)
    assert any(broken(seed) for seed in range(300))


@pytest.mark.parametrize(("decodes", "context"), [(1, 100), (8, 20_000), (32, 131_072)])
def test_the_budget_is_the_largest_that_keeps_the_objective(decodes: int, context: int) -> None:
    """A multiple of the tile, growing with the objective, and shrinking as the context grows."""
    budgets = []
    for tbt in (0.02, 0.03, 0.05, 0.1):
        one = StallFree(MISTRAL_7B, tbt, tile=32, most=4096)
        tokens = one.budget(decodes, context)
        budgets.append(tokens)
        if tokens:
            cost = [
                MISTRAL_7B.seconds(Batch(((n - decodes, 0),), decodes, context))
                for n in (tokens, tokens + 32)
            ]
            assert tokens % 32 == 0 and cost[0] <= tbt < cost[1]
    assert budgets == sorted(budgets) and budgets[-1] > budgets[0]
    assert StallFree(MISTRAL_7B, 0.05, tile=32).budget(decodes, 4 * context) <= budgets[2]


def test_decodes_beyond_the_budget_run_all_the_same_and_a_prompt_goes_on() -> None:
    running = [one for seed in range(40) for one in state(Random(seed))[0] if one.phase is Phase.DECODE]
    shares = StallFree(MISTRAL_7B, 0.011, tile=32).share(running, state(Random(1))[1], 0.0)
    assert [share.sequence for share in shares[:-1]] == running
    assert 0 < shares[-1].tokens <= 16


def steps_of_a_prompt(tokens: int) -> int:
    """Until a prompt is read beside a decode that goes on, where a tile beside it misses the objective."""
    policy = StallFree(LinearCost(0.06, 0, 0.005), 0.1, tile=16)
    bench = Bench(total=64, policy=policy)
    bench.core.submit(request("decodes", prompt(4), 100))
    bench.step()
    bench.core.submit(request("read", prompt(tokens, 1), 2))
    steps = 0
    while not bench.output("read") and steps < 90:
        bench.step()
        steps += 1
    assert not bench.finish("decodes")
    return steps


def test_a_prompt_is_read_beside_decodes_that_leave_no_room_for_it() -> None:
    assert steps_of_a_prompt(60) == 4


def test_else_it_would_wait_until_they_end(monkeypatch: pytest.MonkeyPatch) -> None:
    mutate(monkeypatch, StallFree, "share", "max(self.least, budget - decodes)", "max(0, budget - decodes)")
    assert steps_of_a_prompt(60) == 90


@pytest.mark.parametrize("tbt", [0.012, 0.03])
def test_tokens_are_those_of_each_request_alone(tbt: float) -> None:
    rng = Random(6)
    bench = Bench(total=60, policy=StallFree(MISTRAL_7B, tbt, tile=8, most=24, least=2))
    requests = [request(f"r{i}", prompt(rng.randint(1, 40), i), rng.randint(1, 20)) for i in range(30)]
    for one in requests:
        bench.core.submit(one)
        bench.step()
    bench.drain()
    assert [bench.output(one.id) for one in requests] == [alone(one) for one in requests]


def test_gaps_between_tokens_are_a_quarter_of_those_with_prompts_first(full: bool) -> None:
    """At 2 requests a second; published with the larger model: 0.68 s against 0.14 s."""
    count = 600 if full else 100
    ours, theirs = (sarathi_serve.measure(arm, 2.0, count, 1) for arm in ("stall-free", "vLLM"))
    assert ours["tbt"]["p99"] * 4 <= theirs["tbt"]["p99"]
    assert ours["tbt"]["max"] <= 1.1 * sarathi_serve.STRICT
    assert ours["ttft"]["p50"] <= 1.5 * theirs["ttft"]["p50"], "the price is in the first token"


def test_chunks_and_hybrid_batches_are_needed_together(full: bool) -> None:
    """The paper's table 4, by order: hybrid batches alone stall decodes, chunks alone prompts."""
    arms = {
        arm: sarathi_serve.measure(arm, 2.0, 400 if full else 80, 1)
        for arm in ("Orca", "chunks alone", "stall-free")
    }
    gaps = {arm: report["tbt"]["p99"] for arm, report in arms.items()}
    first = {arm: report["ttft"]["p50"] for arm, report in arms.items()}
    assert first["Orca"] <= first["stall-free"] < first["chunks alone"]
    assert gaps["Orca"] > 2 * max(gaps["stall-free"], gaps["chunks alone"])


def test_capacity_under_the_objectives(full: bool) -> None:
    """Published: 3.5 times for Mistral-7B under the strict one, 2.6 over all, and 1.65 for Yi-34B under the
    relaxed one. Without --full: at a rate where prompts first has long failed, we hold."""
    if not full:
        ours, theirs = (sarathi_serve.measure(arm, 2.75, 80, 1) for arm in ("stall-free", "vLLM"))
        assert ours["tbt"]["p99"] <= sarathi_serve.STRICT < theirs["tbt"]["p99"]
        assert ours["ttft"]["p50"] <= 2.0
        return
    for tbt, least in ((sarathi_serve.STRICT, 2.6), (sarathi_serve.RELAXED, 1.2)):
        slower, faster = (sarathi_serve.capacity(arm, tbt, 600, 1, 7) for arm in ("vLLM", "stall-free"))
        assert faster >= least * slower
