"""One engine core under adversarial tenants, step by step: who was served what, while who waited."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from random import Random

from decode_pool.continuous_batching import ContinuousBatching
from engine.batch import Limits, WaitingQueue
from engine.blocks import BlockPool
from engine.core import EngineCore
from engine.cost_model import LinearCost
from engine.queues.fair import FairQueue
from engine.request import Request, Sampling
from engine.reserve_max import ReserveMax, longest
from engine.service import Counters, MovingAverage
from simulator.runner import EOS, SimulatedRunner

SLOTS, LONGEST_PROMPT, STEPS = 640, 160, 1800
U = max(1 * LONGEST_PROMPT, 2 * SLOTS)
"""max(w_p · longest prompt, w_q · tokens of a batch), VTC (OSDI'24): half of the bound on the gap."""


@dataclass(frozen=True, slots=True)
class Ask:
    """`tenant` asks at that step for an answer of so many tokens."""

    step: int
    tenant: str
    prompt: int
    output: int


def asks(seed: int) -> list[Ask]:
    """Two to four tenants, each of a kind: always there, on and off, late, or away in between."""
    rng = Random(seed)
    made: list[Ask] = []
    for tenant in "abcd"[: rng.randint(2, 4)]:
        active = rng.choice((_always, _on_and_off, _late, _away))
        prompt, output = rng.choice(((130, 15), (15, 80), (80, 60), (40, 500)))
        rate = rng.choice((0.1, 0.15, 0.3))
        here = active(rng)
        made += [
            Ask(step, tenant, rng.randint(1, prompt) + 30, rng.randint(1, output))
            for step in range(STEPS)
            if here(step) and rng.random() < rate
        ]
    return sorted(made, key=lambda one: one.step)


def _always(rng: Random) -> Callable[[int], bool]:
    return lambda step: True


def _on_and_off(rng: Random) -> Callable[[int], bool]:
    period = rng.choice((40, 300, 800))
    return lambda step: step // period % 2 == 0


def _late(rng: Random) -> Callable[[int], bool]:
    begin = rng.randint(STEPS // 4, STEPS * 2 // 3)
    return lambda step: step >= begin


def _away(rng: Random) -> Callable[[int], bool]:
    leave = rng.randint(100, 400)
    return lambda step: not leave <= step < 2 * STEPS // 3


@dataclass(frozen=True, slots=True)
class Moment:
    """After a step: what each tenant has been served in all, and whose requests still wait."""

    service: dict[str, float]
    waiting: frozenset[str]
    idle: bool
    """Whether the head of the queue would have had room."""


class Served:
    """A core with `queue` on which answers become as long as they were asked for."""

    def __init__(self, queue: WaitingQueue) -> None:
        self.queue = queue
        self._lengths: dict[str, int] = {}
        self._runner = SimulatedRunner(LinearCost(0.0, 1.0, 0.0), self._lengths, 0.0)
        self._service: dict[str, float] = {}
        self._waiting: Counter[str] = Counter()
        self._core = EngineCore(
            pool=BlockPool(2 * SLOTS // 16, 16, False),
            queue=queue,
            policy=ReserveMax(ContinuousBatching(100_000), SLOTS),
            limits=Limits(100_000, 1000, 1_000_000, 0.0),
            eos_token_ids=frozenset({EOS}),
        )

    def ask(self, one: Ask, name: str, now: float) -> None:
        self._lengths[name] = one.output
        self._waiting[one.tenant] += 1
        prompt = (len(self._lengths),) * one.prompt
        self._core.submit(Request(name, prompt, Sampling(max_tokens=one.output), tenant=one.tenant), now=now)

    def step(self, now: float) -> Moment:
        """Serve: a prompt token is worth 1 and an output token 2, when they are computed."""
        plan = self._core.plan(now)
        head = next(iter(self.queue), None)
        held = sum(longest(one.request) for one in self._core.running)
        idle = head is not None and held + longest(head.request) <= SLOTS
        if plan is not None:
            outcome = self._core.commit(plan, self._runner.run(plan), now + 1.0)
            for emitted in outcome.emitted:
                request = emitted.sequence.request
                first = emitted.index == 0
                self._waiting[request.tenant] -= first
                more = 2.0 + len(request.prompt) * first
                self._service[request.tenant] = self._service.get(request.tenant, 0.0) + more
            if isinstance(self.queue, FairQueue):
                self.queue.observe(outcome)
        return Moment(dict(self._service), frozenset(+self._waiting), idle)


class Known(MovingAverage):
    """An oracle, where all answers of a tenant have one length."""

    def __init__(self, lengths: Mapping[str, int]) -> None:
        super().__init__()
        self._lengths = lengths

    def predict(self, tenant: str) -> int:
        return self._lengths[tenant]


def serve(trace: list[Ask], queue: WaitingQueue | None = None) -> Iterator[Moment]:
    """Every step of a trace; by default under VTC."""
    served = Served(FairQueue(Counters()) if queue is None else queue)
    coming = iter(enumerate(trace))
    number, one = next(coming, (0, None))
    for step in range(STEPS):
        while one is not None and one.step <= step:
            served.ask(one, str(number), float(step))
            number, one = next(coming, (0, None))
        yield served.step(float(step))


def worst(moments: Iterator[Moment]) -> float:
    """The largest difference in service of two tenants, over all intervals in which both always wait."""
    found = 0.0
    spans: dict[tuple[str, str], tuple[float, float]] = {}
    for moment in moments:
        tenants = sorted(moment.waiting)
        pairs = [(a, b) for a in tenants for b in tenants if a < b]
        spans = {pair: spans[pair] for pair in pairs if pair in spans}
        for a, b in pairs:
            difference = moment.service.get(a, 0.0) - moment.service.get(b, 0.0)
            low, high = spans.get((a, b), (difference, difference))
            spans[a, b] = min(low, difference), max(high, difference)
            found = max(found, spans[a, b][1] - spans[a, b][0])
    return found


def behind(moments: Iterator[Moment]) -> float:
    """How far a tenant who always waits falls behind any other, who may wait or not, in any interval."""
    found = 0.0
    best: dict[tuple[str, str], float] = {}
    for moment in moments:
        best = {pair: ahead for pair, ahead in best.items() if pair[0] in moment.waiting}
        for a in moment.waiting:
            for b in moment.service.keys() - {a}:
                ahead = moment.service.get(a, 0.0) - moment.service[b]
                best[a, b] = max(best.get((a, b), ahead), ahead)
                found = max(found, best[a, b] - ahead)
    return found
