"""The policies as a config puts them together: who waits for whom in an engine that has them."""

from __future__ import annotations

from dataclasses import fields
from itertools import pairwise

import pytest

from cluster.config_engine import EngineConfig, StepCostConfig
from cluster.policies import arrange, role_policy
from cluster.status_message import charges_message, news_from, status_from, status_message
from engine.plan import Drawn, StepPlan, StepResult
from engine.queues.mlfq import MultiLevelQueue
from engine.reserve_max import ReserveMax
from engine.sequence import SequenceKey
from engine.shared_service import News, Served
from engine.status import InstanceStatus
from engine.tiers import Ranked, TierSettings
from global_scheduler.placement import DECODE, PREFILL
from tests.engine.mutants import mutate
from tests.engine.toy import Bench, prompt, request

COST = StepCostConfig(base=5, per_token=0.5)
"""A step of eight decodes takes 9 ms, one of 256 tokens 133 ms."""


def drawn(plan: StepPlan) -> StepResult:
    """The same token for everybody: what is computed is not the question here."""
    return StepResult(
        tuple(tuple(Drawn(1) for _ in work.draw.choices) if work.draw else () for work in plan.works)
    )


def bench(role: str, queue: str, *, total: int = 4000, slots: int = 0, **settings: object) -> Bench:
    """An instance's engine, as its config arranges it."""
    engine = EngineConfig(queue=queue, max_sequences=8, step_cost=COST, **settings)  # type: ignore[arg-type]
    waiting, policy = arrange(engine, role_policy(engine, role), total * engine.block_size)
    return Bench(total=total, block_size=engine.block_size, queue=waiting, policy=policy,
                 max_sequences=engine.max_sequences, tiers=TierSettings(slots, 1e-5))  # fmt: skip


def step(one: Bench) -> bool:
    """A step on a virtual clock; False if nobody can run."""
    plan = one.core.plan(one.now)
    if plan is None:
        return False
    one.now += (COST.base + COST.per_token * plan.tokens) / 1e3
    one.runner.plans.append(plan)
    one.outcomes.append(one.core.commit(plan, drawn(plan), one.now))
    return True


def first_token(one: Bench, name: str, most: int = 3000) -> float:
    """Seconds until a request that comes now has its first token."""
    begun = one.now
    for _ in range(most):
        assert step(one)
        if any(emitted.key.request_id == name for emitted in one.outcomes[-1].emitted):
            return one.now - begun
    raise AssertionError(f"{name} has no token")


def behind_long_answers(queue: str, **settings: object) -> float:
    one = bench(DECODE, queue, **settings)
    for number in range(8):
        one.core.submit(request(f"long{number}", prompt(20, number), 3000))
    for _ in range(200):
        step(one)
    assert all(len(each.output) > 150 for each in one.core.running)
    one.core.submit(request("short", prompt(3, 99), 3))
    return first_token(one, "short")


def test_a_short_job_gets_a_step_at_once_where_all_places_are_taken_by_long_ones() -> None:
    """Held back by as many as run at most, it would wait for the first of them to end."""
    assert behind_long_answers("mlfq") <= 0.03
    assert behind_long_answers("fcfs") > 10


def test_mutant_with_places_for_a_step_alone_it_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(MultiLevelQueue, "at_once")
    assert behind_long_answers("mlfq") > 10


def test_never_more_than_max_sequences_share_a_step() -> None:
    one = bench(DECODE, "mlfq")
    for number in range(40):
        one.core.submit(request(f"r{number}", prompt(20, number), 60 if number % 2 else 5))
    widest = resident = 0
    while step(one):
        widest = max(widest, len(one.runner.plans[-1].works))
        resident = max(resident, len(one.core.running))
    assert widest == 8 < resident
    assert sum(emitted.finish is not None for emitted in one.emitted) == 40


def test_a_short_job_that_is_handed_over_finds_a_place_among_long_ones() -> None:
    one = bench(DECODE, "mlfq")
    for number in range(8):
        one.core.submit(request(f"long{number}", prompt(20, number), 3000))
    for _ in range(20):
        step(one)
    reservation = one.core.reserve("s", request("short", prompt(3, 99), 3), 3)
    assert reservation.blocks


def test_where_kv_is_full_a_long_one_is_swapped_out_for_a_short_job() -> None:
    one = bench(DECODE, "mlfq", total=8 * 20, slots=400)
    for number in range(8):
        one.core.submit(request(f"long{number}", prompt(16 * 10, number), 1000))
    while one.core.pool.available > 4:
        step(one)
    one.core.submit(request("short", prompt(16 * 5, 99), 3))
    assert first_token(one, "short") <= 0.2


def behind_a_long_prompt(queue: str, **settings: object) -> float:
    one = bench(PREFILL, queue, **settings)
    for number in range(3):
        one.core.submit(request(f"long{number}", prompt(6000, number), 1))
    step(one)
    one.core.submit(request("short", prompt(3, 99), 1))
    return first_token(one, "short")


@pytest.mark.parametrize("batch", ["auto", "stall_free", "decode_maximal"])
def test_a_short_prompt_is_read_before_the_rest_of_a_long_one(batch: str) -> None:
    assert behind_a_long_prompt("mlfq", batch=batch) <= 0.2
    assert behind_a_long_prompt("fcfs", batch=batch) > 3


def test_mutant_prompts_under_way_first(monkeypatch: pytest.MonkeyPatch) -> None:
    first = "lambda one: (one.phase is Phase.WAITING, self._rank(one))"
    mutate(
        monkeypatch, MultiLevelQueue, "share", "sorted(every, key=self._rank)", f"sorted(every, key={first})"
    )
    assert behind_a_long_prompt("mlfq") > 3


def turns() -> int:
    """How often the reader changes, of three prompts that take 1.28 s at once and 1.325 s in chunks.

    A quantum is of 1.28 s.
    """
    one = bench(PREFILL, "mlfq")
    for number in range(3):
        one.core.submit(request(f"long{number}", prompt(2550, number), 1))
    readers = []
    while step(one):
        readers.append(one.runner.plans[-1].works[0].request_id)
    return sum(first != second for first, second in pairwise(readers))


def test_long_prompts_are_read_one_after_the_other() -> None:
    assert turns() == 2


def test_mutant_who_sinks_while_his_prompt_is_read_takes_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    mutate(monkeypatch, MultiLevelQueue, "_account", "and key not in reading", "")
    assert turns() > 2


@pytest.mark.parametrize("batch", ["auto", "stall_free", "decode_maximal", "slices"])
@pytest.mark.parametrize("role", [PREFILL, DECODE])
def test_everybody_ends_whatever_shares_the_step(batch: str, role: str) -> None:
    one = bench(role, "mlfq", batch=batch)
    for number in range(30):
        one.core.submit(request(f"r{number}", prompt(700 if number % 3 else 5, number), 1 + 7 * (number % 5)))
    while step(one):
        one.core.check()
    assert sum(emitted.finish is not None for emitted in one.emitted) == 30


def preemptions(queue: str) -> int:
    """Of 18 requests of two blocks in the end, in twelve."""
    one = bench(DECODE, queue, total=12, admission="reserve_max")
    for number in range(18):
        one.core.submit(request(f"r{number}", prompt(12, number), 8))
    while step(one):
        one.core.check()
    assert sum(emitted.finish is not None for emitted in one.emitted) == 18
    return one.core.status().preemptions


@pytest.mark.parametrize("queue", ["fcfs", "fair", "mlfq"])
def test_who_is_reserved_for_is_not_preempted_under_any_queue(queue: str) -> None:
    assert preemptions(queue) == 0


@pytest.mark.parametrize("queue", ["fcfs", "fair", "mlfq"])
def test_mutant_an_engine_that_does_not_see_the_rule(monkeypatch: pytest.MonkeyPatch, queue: str) -> None:
    monkeypatch.setattr("engine.core.rule_of", lambda policy: None)
    assert preemptions(queue) > 0


def test_what_a_config_reserves_are_blocks() -> None:
    engine = EngineConfig(admission="reserve_max")
    _, policy = arrange(engine, role_policy(engine, DECODE), 1000)
    assert isinstance(policy, ReserveMax) and policy.slots is None


def test_what_is_told_of_tenants_arrives_as_it_was() -> None:
    key = SequenceKey("r", 1)
    news = News(
        (Served(key, "t", 3, 5), Served(key, "u", 1, 0, ended=True), Served(key, "", 0, 2, left=True)),
        {"t": 1.5},
    )
    assert news_from(charges_message(news)) == news


def test_every_number_of_a_status_arrives() -> None:
    numbers = {field.name: at for at, field in enumerate(fields(InstanceStatus)) if field.type == "int"}
    status = InstanceStatus("prefill-0", "prefill", step_seconds=0.5, **numbers)  # type: ignore[arg-type]
    assert numbers["prefill_tokens"] and status_from(status_message(status)) == status


def test_slices_rank_in_production_as_in_the_simulator() -> None:
    """Else the last who came would make room, and not who is in no batch."""
    engine = EngineConfig(batch="slices", max_sequences=2, step_cost=COST)
    policy = role_policy(engine, DECODE)
    alone = policy.policies[DECODE]
    assert isinstance(policy, Ranked)
    assert isinstance(alone, Ranked)
    one = Bench(total=4000, block_size=engine.block_size, policy=policy, max_sequences=8)
    for number in range(4):
        one.core.submit(request(f"r{number}", prompt(20, number), 50))
        one.step()
    everybody = [each for number in range(4) for each in one.core.sequences(f"r{number}")]
    assert policy.latest(everybody, one.now) == alone.latest(everybody, one.now)
    orders = {policy.before(first, second) for first in everybody for second in everybody}
    assert (
        orders
        == {alone.before(first, second) for first in everybody for second in everybody}
        == {False, True}
    )
    policy.role = PREFILL
    assert policy.latest(everybody, one.now) == everybody[::-1]
    assert not any(policy.before(first, second) for first in everybody for second in everybody)
    assert not isinstance(role_policy(EngineConfig(), DECODE), Ranked)
