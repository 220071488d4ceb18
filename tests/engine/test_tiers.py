"""Sequences that wait in host memory: the same tokens, no slot lost, and a bound on swapping."""

from __future__ import annotations

import random
from collections.abc import Iterable
from collections.abc import Sequence as SequenceOf

import pytest

from decode_pool.continuous_batching import ContinuousBatching
from engine.batch import Share
from engine.cost_model import LinearCost
from engine.planner import Planner
from engine.queues.mlfq import Levels, MultiLevelQueue
from engine.roster import Roster
from engine.sequence import Sequence, SequenceKey, Tier
from engine.tiers import Guard, Tiers, TierSettings
from tests.engine.mutants import mutate
from tests.engine.toy import Bench, alone, prompt, request

HOST = TierSettings(slots=64, seconds=0.001, share=0.0)


class TakingTurns:
    """A ranked policy under which everybody is in the way of somebody: one works, and never twice running."""

    def __init__(self, rng: random.Random) -> None:
        self._rng = rng
        self._ranks: dict[SequenceKey, float] = {}

    def share(self, running: SequenceOf[Sequence], waiting: Iterable[Sequence], now: float) -> list[Share]:
        self._ranks = {key: self._rng.random() for key in self._ranks}
        every = sorted([*running, *waiting], key=self.rank)
        return ContinuousBatching(9).share(
            [one for one in every[:3] if one in running],
            [one for one in every[:3] if one not in running],
            now,
        )

    def rank(self, sequence: Sequence) -> float:
        return self._ranks.setdefault(sequence.key, self._rng.random())

    def before(self, first: Sequence, second: Sequence) -> bool:
        return self.rank(first) < self.rank(second)

    def latest(self, sequences: Iterable[Sequence], now: float) -> list[Sequence]:
        return sorted(sequences, key=self.rank, reverse=True)


def crowd(bench: Bench, count: int, seed: int) -> None:
    """Requests of all sizes, some with several choices or a common prefix: none gets another's tokens."""
    rng = random.Random(seed)
    requests = [
        request(f"r{i}", prompt(rng.randint(1, 20), rng.randrange(3)), rng.randint(1, 14),
                n=rng.choice((1, 1, 2)), seed=i)
        for i in range(count)
    ]  # fmt: skip
    for one in requests:
        bench.core.submit(one)
        for _ in range(rng.randrange(4)):
            bench.step()
    bench.drain()
    for one in requests:
        for choice in range(one.sampling.n):
            assert bench.output(one.id, choice) == alone(one, choice)
    assert bench.core.tiers.used == 0
    assert bench.core.status().blocks_used == 0


@pytest.mark.parametrize("slots", [64, 5, 0])
@pytest.mark.parametrize("caching", [True, False])
@pytest.mark.parametrize("proactive", [True, False])
def test_tokens_are_the_same_however_often_a_sequence_is_swapped(
    full: bool, slots: int, caching: bool, proactive: bool
) -> None:
    for seed in range(40 if full else 4):
        tiers = TierSettings(slots=slots, share=0.0, proactive=proactive, idle=0.2)
        policy = TakingTurns(random.Random(seed))
        bench = Bench(total=14, policy=policy, tiers=tiers, prefix_cache=caching, max_sequences=8)
        crowd(bench, 25, seed)
        assert bench.core.tiers.swapped_out > 10 or not slots


@pytest.mark.parametrize("share", [0.0, 0.05])
def test_tokens_are_the_same_under_the_queue_that_preempts(full: bool, share: float) -> None:
    """Choices that part and sequences that come and go have a level from their first step on."""
    for seed in range(30 if full else 3):
        both = MultiLevelQueue(Levels(quantum=2.0, batch=3), ContinuousBatching(9), LinearCost(0.5, 0, 0.1))
        tiers = TierSettings(slots=40, seconds=0.01, share=share, idle=0.1)
        bench = Bench(total=14, queue=both, policy=both, tiers=tiers, max_sequences=8)
        crowd(bench, 25, seed)
        assert bench.core.tiers.swapped_out


@pytest.mark.parametrize(
    ("owner", "name", "old", "new"),
    [
        (Planner, "_finished", "return plan,", "plan = StepPlan(plan.works, plan.copies); return plan,"),
        (Planner, "_evict", "entry is None or not entry.copies", "True"),
        (Tiers, "give", "self._emptied += slots", "self._free += slots"),
        (Roster, "preempt", "sequence.tier = Tier.HOST", "pass"),
    ],
    ids=["never copied", "before a copy on write", "slots at once", "untold"],
)  # fmt: skip
def test_a_wrong_swap_is_found(
    monkeypatch: pytest.MonkeyPatch, owner: type, name: str, old: str, new: str
) -> None:
    mutate(monkeypatch, owner, name, old, new)
    found = False
    for seed in range(12):
        tiers = TierSettings(slots=24, share=0.0, idle=0.2)
        bench = Bench(total=14, policy=TakingTurns(random.Random(seed)), tiers=tiers, max_sequences=8)
        try:
            crowd(bench, 25, seed)
        except Exception:
            found = True
            break
    assert found


@pytest.mark.parametrize("when", range(1, 13))
def test_swapped_out_at_any_step_a_request_goes_on_with_the_same_tokens(when: int) -> None:
    """Also in the midst of its prompt, and it computes nothing twice."""
    bench = Bench(total=12, budget=5, tiers=HOST)
    one = request("r", prompt(17), 10)
    bench.core.submit(one)
    for _ in range(when):
        bench.step()
    (sequence,) = bench.core.sequences("r")
    computed = sequence.computed
    bench.core.tiers.begin(bench.now)
    bench.core._roster.preempt(sequence)
    assert sequence.tier is Tier.HOST and sequence.computed == computed and not sequence.blocks
    bench.drain()
    assert bench.output("r") == alone(one)
    assert sum(len(work.tokens) for plan in bench.runner.plans for work in plan.works) == 17 + 10 - 1


def test_who_is_to_be_swapped_in_by_the_same_step_stays_out() -> None:
    """Its blocks have nothing in them yet: to copy them out would put garbage in its slots."""
    tiers, sequence = Tiers(HOST), Sequence(request("r", prompt(9)))
    tiers.begin(0.0)
    assert tiers.take(sequence, [4, 5, 6])
    (out, _) = tiers.copies()
    tiers.begin(1.0)
    tiers.give(sequence, [7, 8, 9])
    assert tiers.take(sequence, [7, 8, 9])
    assert tiers.copies() == ((), ())
    tiers.begin(2.0)
    tiers.give(sequence, [1, 2, 3])
    assert tiers.copies() == ((), tuple((slot, block - 3) for block, slot in out))
    tiers.check(())


def test_host_memory_that_is_full_means_recomputing() -> None:
    bench = Bench(total=12, tiers=TierSettings(slots=2))
    one = request("r", prompt(17), 6)
    bench.core.submit(one)
    bench.step(), bench.step()
    (sequence,) = bench.core.sequences("r")
    bench.core._roster.preempt(sequence)
    assert sequence.tier is Tier.DEVICE and sequence.computed == 0
    bench.drain()
    assert bench.output("r") == alone(one)


def computed(slots: int, seed: int, proactive: bool) -> int:
    """Tokens that are computed for forty requests in 24 blocks, under the queue that preempts."""
    rng = random.Random(seed)
    both = MultiLevelQueue(Levels(quantum=2.0, batch=4), ContinuousBatching(16), LinearCost(0.5, 0, 0.1))
    tiers = TierSettings(slots=slots, seconds=0.001, proactive=proactive)
    bench = Bench(total=24, queue=both, policy=both, tiers=tiers)
    for number in range(40):
        bench.core.submit(request(f"r{number}", prompt(rng.randint(4, 24), number), rng.randint(2, 30)))
        for _ in range(rng.randrange(4)):
            bench.step()
    bench.drain()
    return sum(plan.tokens for plan in bench.runner.plans)


@pytest.mark.parametrize("proactive", [True, False])
def test_where_host_memory_is_full_nothing_is_thrown_away_by_choice(proactive: bool) -> None:
    for seed in range(3):
        assert computed(2, seed, proactive) <= computed(0, seed, proactive)


def test_else_it_would_be_worse_than_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Tiers, "fits", lambda *_: True)
    assert computed(2, 0, proactive=True) > 1.3 * computed(0, 0, proactive=True)


def test_a_request_that_is_cancelled_or_frozen_gives_its_slots_back() -> None:
    for leave in (lambda b: b.core.cancel("r"), lambda b: b.core.freeze("r")):
        bench = Bench(total=12, tiers=HOST)
        bench.core.submit(request("r", prompt(9), 6))
        bench.step()
        bench.core._roster.preempt(bench.core.sequences("r")[0])
        assert bench.core.tiers.used
        leave(bench)
        assert bench.core.tiers.used == 0
        bench.core.check()


def test_the_guard_bounds_the_time_that_swapping_takes() -> None:
    guard = Guard(TierSettings(share=0.05, burst=0.5))
    now = spent = 0.0
    for _ in range(10_000):
        now += 0.02
        guard.pass_to(now)
        if guard.left >= 0.1:
            guard.spend(0.1)
            spent += 0.1
    assert 0.04 * now <= spent <= 0.05 * now + 0.5


def estimates(jobs: dict[str, tuple[int, float, float]], levels: Levels, now: float) -> dict[str, float]:
    """By the definition: every job above, quantum by quantum, until it is at the level in question."""
    times = {}
    for name, (level, _, since) in jobs.items():
        need = 0.0
        for other, served, _ in jobs.values():
            while other < level:
                need += levels.quantum * levels.ratio**other - served
                other, served = other + 1, 0.0
        promoted = levels.starvation - (now - since) if level else float("inf")
        times[name] = min(max(0.0, promoted), need / levels.batch)
    return times


def test_the_next_scheduled_time_is_that_of_its_definition(full: bool) -> None:
    rng = random.Random(5)
    for _ in range(1000 if full else 100):
        levels = Levels(batch=rng.randint(1, 4), starvation=rng.uniform(1, 40))
        queue = MultiLevelQueue(levels, ContinuousBatching(64), LinearCost(0, 0, 0.001))
        now, jobs = 50.0, {}
        sequences = [Sequence(request(f"r{i}", prompt(3))) for i in range(rng.randint(1, 8))]
        for sequence in sequences:
            queue.add(sequence)
            list(queue)
            job = queue._jobs[sequence.key]
            job.level = rng.randrange(6)
            job.served = rng.uniform(0, levels.quantum * levels.ratio**job.level)
            job.idle_since = rng.uniform(10, 50)
            jobs[sequence.request.id] = job.level, job.served, job.idle_since
        times = estimates(jobs, levels, now)
        for sequence in sequences:
            assert queue.next_scheduled(sequence, now) == pytest.approx(times[sequence.request.id], abs=1e-9)
        latest = [times[one.request.id] for one in queue.latest(sequences, now)]
        assert latest == sorted(latest, reverse=True)
