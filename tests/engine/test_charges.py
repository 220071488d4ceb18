"""Tenants pay for each token once, whatever happened to their requests: preempted, swapped, moved or lost."""

from __future__ import annotations

import random
from dataclasses import replace
from typing import Any

import pytest

from decode_pool.continuous_batching import ContinuousBatching
from engine import service
from engine.outcome import StepOutcome
from engine.queues.fair import FairQueue
from engine.request import Request
from engine.sequence import SequenceKey
from engine.service import Counters, MovingAverage, profiled
from engine.shared_service import Ledger, SharedCounters
from engine.tiers import TierSettings
from tests.engine import world as worlds
from tests.engine.mutants import mutate
from tests.engine.toy import Bench, prompt
from tests.engine.toy import request as plain
from tests.engine.world import Pick, World

TENANTS = ("a", "b", "c")
WEIGHTS = {"b": 2.0, "c": 0.5}


class FairWorld(World):
    """Two instances whose queues share the counters; one of them has host memory."""

    OPERATIONS = tuple(name for name in World.OPERATIONS if name != "cancel")

    def __init__(self, pick: Pick, counters: Counters) -> None:
        super().__init__(pick)
        self.counters = counters
        self.benches = [
            Bench(total=14, budget=9, max_sequences=6, queue_limit=8, queue=FairQueue(counters),
                  policy=ContinuousBatching(9), tiers=TierSettings(slots=slots))
            for slots in (0, 10)
        ]  # fmt: skip

    def queue(self, where: int) -> FairQueue:
        queue = self.core(where).queue
        assert isinstance(queue, FairQueue)
        return queue

    def hear(self, where: int, outcome: StepOutcome) -> None:
        super().hear(where, outcome)
        self.queue(where).observe(outcome)

    def check(self) -> None:
        super().check()
        self.queue(0).watch(self.core(0).running)


def tenanted(name: str, *arguments: Any, **more: Any) -> Request:
    return replace(plain(name, *arguments, **more), tenant=TENANTS[int(name[1:]) % len(TENANTS)])


def owed(world: FairWorld) -> dict[str, float]:
    """What each tenant owes by the definition: the cost of every answer as long as it became, and of every
    prompt once."""
    owing = dict.fromkeys(TENANTS, 0.0)
    for key, tokens in world.tokens.items():
        one = world.requests[key.request_id]
        if tokens:
            spared = profiled(len(one.prompt), 0) if key.choice else 0.0
            cost = profiled(len(one.prompt), len(tokens)) - spared
            owing[one.tenant] += cost / WEIGHTS.get(one.tenant, 1.0)
    return owing


def lives(
    monkeypatch: pytest.MonkeyPatch, seeds: int, predictor: MovingAverage | None = None
) -> dict[str, int]:
    monkeypatch.setattr(worlds, "request", tenanted)
    happened = dict.fromkeys(("moved", "recovered", "preempted", "swapped"), 0)
    for seed in range(seeds):
        world = FairWorld(random.Random(seed).choice, Counters(profiled, WEIGHTS, predictor))
        for _ in range(150):
            world.act()
        world.close()
        for where in range(2):
            world.queue(where).watch(())
        if not world.gone:
            service, lifted = world.counters.service, world.counters.lifted
            paid = {tenant: service.get(tenant, 0.0) - lifted.get(tenant, 0.0) for tenant in TENANTS}
            assert paid == pytest.approx(owed(world), abs=1e-6)
        happened["moved"] += world.moved
        happened["recovered"] += world.recovered
        for bench in world.benches:
            happened["preempted"] += bench.core.status().preemptions
            happened["swapped"] += bench.core.tiers.swapped_in
    return happened


@pytest.mark.parametrize("predictor", [None, MovingAverage()], ids=["as it comes", "predicted"])
def test_each_token_is_paid_once_through_preemption_movement_and_failure(
    monkeypatch: pytest.MonkeyPatch, full: bool, predictor: MovingAverage | None
) -> None:
    happened = lives(monkeypatch, 500 if full else 20, predictor)
    assert all(happened.values()), happened


@pytest.mark.parametrize(
    ("owner", "name", "old", "new"),
    [
        (Counters, "_settle", "(amount - charge.amount)", "amount"),
        (Counters, "leave", "self._gone[key] = known", "pass"),
        (Counters, "charge", "output <= known.output", "output < 3"),
        (FairQueue, "observe", "self._charge(emitted.sequence)", "pass"),
        (Counters, "_price", "if choice else", "if False else"),
    ],
    ids=["by the step", "anew where it moves", "not the first tokens", "never", "a prompt for each choice"],
)
def test_who_pays_otherwise_is_found(
    monkeypatch: pytest.MonkeyPatch, owner: type, name: str, old: str, new: str
) -> None:
    mutate(monkeypatch, owner, name, old, new)
    with pytest.raises(AssertionError):
        lives(monkeypatch, 30)


def test_counters_of_each_instance_alone_would_charge_prompts_again(monkeypatch: pytest.MonkeyPatch) -> None:
    make = FairQueue.__init__

    def apart(self: FairQueue, counters: Counters) -> None:
        make(self, Counters(profiled, WEIGHTS) if isinstance(counters, Counters) else counters)

    monkeypatch.setattr(FairQueue, "__init__", apart)
    with pytest.raises(AssertionError):
        lives(monkeypatch, 5)


def handed_over(count: int) -> Counters:
    """The counters of an instance that hands every request over after its first token."""
    counters = Counters()
    queue = FairQueue(counters)
    bench = Bench(total=64, queue=queue)
    for number in range(count):
        bench.core.submit(replace(plain(f"r{number}", prompt(5, number)), tenant="t"), handoff=True)
        outcome = bench.step()
        assert outcome is not None
        queue.observe(outcome)
        bench.core.release(f"r{number}")
    queue.watch(())
    return counters


@pytest.mark.parametrize("moved", [False, True])
def test_choices_share_the_price_of_their_prompt_as_they_share_its_computation(moved: bool) -> None:
    """Four, by the counters of an instance and by the account of all; then three of them elsewhere."""
    here, there, ledger = SharedCounters(), SharedCounters(), Ledger(Counters())
    queue, one = FairQueue(here), replace(plain("r", prompt(20), 6, n=4), tenant="t")
    bench = Bench(queue=queue)
    bench.core.submit(one)
    while (outcome := bench.step()) is not None:
        queue.observe(outcome)
        if moved and len(bench.output("r")) == 3:
            bench.core.cancel("r")
    queue.watch(())
    if moved:
        for choice in (1, 2, 3):
            there.charge(SequenceKey("r", choice), "t", 20, 6)
            there.end(SequenceKey("r", choice))
        assert there.service == {"t": 2 * 3 * 6}
    for counters in (here, there, here):
        ledger.hear(counters.news())
    tokens = 3 + 3 * 6 if moved else 4 * 6
    assert ledger.service == {"t": 20 + 2 * tokens}
    assert here.service == {"t": 20 + 2 * (4 * 3 if moved else 4 * 6)}


def test_what_has_left_is_remembered_within_a_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(service, "REMEMBERED", 10)
    counters = handed_over(50)
    assert counters.service == {"t": 50 * (5 + 2)}
    assert not counters._charges and len(counters._gone) == 10


def test_a_tenant_with_nothing_here_is_forgotten_and_lifted_when_he_is_back() -> None:
    counters = Counters(predictor=MovingAverage(), most_tenants=4)
    counters.come("waits")
    counters.charge(SequenceKey("long", 0), "runs", 7, 0)
    for number in range(100):
        key, tenant = SequenceKey(f"r{number}", 0), f"t{number}"
        counters.come(tenant)
        counters.charge(key, tenant, 100, 0)
        counters.go(tenant)
        counters.charge(key, tenant, 100, 50)
        counters.end(key)
    assert {"waits", "runs"} <= counters.service.keys() and len(counters.service) <= 6
    assert counters._predictor is not None and len(counters._predictor._last) <= 6
    assert counters.lifted.keys() <= counters.service.keys()
    counters.service["waits"] = 40.0
    counters.come("t0")
    assert counters.service["t0"] == 40.0, "no less than who waits"


def test_who_runs_or_waits_would_be_missed(monkeypatch: pytest.MonkeyPatch) -> None:
    mutate(monkeypatch, Counters, "_touch", "self.busy(oldest) or", "")
    with pytest.raises(AssertionError):
        test_a_tenant_with_nothing_here_is_forgotten_and_lifted_when_he_is_back()
