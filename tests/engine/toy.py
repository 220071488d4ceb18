"""A tiny exact model for tests: its next token is a hash of what it reads from its own KV store."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from collections.abc import Sequence as SequenceOf
from dataclasses import replace

from decode_pool.continuous_batching import ContinuousBatching
from engine.batch import BatchPolicy, Limits, Share, WaitingQueue
from engine.blocks import BlockPool
from engine.core import EngineCore
from engine.outcome import Emitted, StepOutcome
from engine.plan import Drawn, StepPlan, StepResult
from engine.queues.fcfs import FCFSQueue
from engine.request import Request, Sampling
from engine.sequence import FinishReason, Sequence
from engine.tiers import TierSettings

VOCABULARY = 50
EOS = 0


def draw(seed: int, choice: int, position: int, prefix: Iterable[int], banned: frozenset[int]) -> int:
    """The token after `prefix`: like sampling, a function of seed, choice, position and the logits."""
    text = repr((seed, choice, position, list(prefix))).encode()
    token = int.from_bytes(hashlib.blake2b(text, digest_size=4).digest(), "little") % VOCABULARY
    while token in banned:
        token = (token + 1) % VOCABULARY
    return token


def alone(request: Request, choice: int = 0, max_length: int = 10_000) -> list[int]:
    """The output of one choice as the definition has it: no engine, no blocks, no batch."""
    sampling = request.sampling
    ends = set(sampling.stop_token_ids) | (set() if sampling.ignore_eos else {EOS})
    output: list[int] = []
    while True:
        banned = frozenset(ends) if len(output) < sampling.min_tokens else frozenset[int]()
        output.append(draw(sampling.seed, choice, len(output), [*request.prompt, *output], banned))
        full = len(output) == sampling.max_tokens or len(request.prompt) + len(output) == max_length
        if output[-1] in ends or full:
            return output


class ToyRunner:
    """Writes each token at its slot and draws from what it then reads back through the block table.

    So a wrong block, a wrong position or a block that somebody else wrote to gives a wrong token.
    """

    def __init__(self, total: int, block_size: int, slots: int = 0) -> None:
        self.block_size = block_size
        self.host: list[list[tuple[int, int]]] = [[(-2, -2)] * block_size for _ in range(slots)]
        self.store: list[list[tuple[int, int]]] = [[(-1, -1)] * block_size for _ in range(total)]
        self.plans: list[StepPlan] = []
        self.copies = self.ahead = 0
        self._last = StepResult(())

    def run(self, plan: StepPlan) -> StepResult:
        plan = self._with_tokens(plan)
        self._last = self._run(plan)
        return self._last

    def _with_tokens(self, plan: StepPlan) -> StepPlan:
        """A step that was planned ahead takes its tokens from the one that ran before it."""
        if not plan.fed:
            return plan
        assert all(work.tokens == (0,) for work in plan.works)
        works = (
            work._replace(tokens=(self._last.drawn[row][0].token,))
            for work, row in zip(plan.works, plan.fed, strict=True)
        )
        self.ahead += 1
        return replace(plan, works=tuple(works), fed=())

    def _run(self, plan: StepPlan) -> StepResult:
        self.plans.append(plan)
        held = {block for work in plan.works for block in work.blocks}
        assert all(target in held for _, target in plan.copies), "a copy into a block of nobody's"
        for block, slot in plan.out:
            self.host[slot] = list(self.store[block])
        for source, target in plan.copies:
            self.store[target] = list(self.store[source])
            self.copies += 1
        for slot, block in plan.into:
            self.store[block], self.host[slot] = list(self.host[slot]), [(-3, -3)] * self.block_size
        for work in plan.works:
            assert work.tokens, "no token, no logits"
            for offset, token in enumerate(work.tokens):
                position = work.start + offset
                block = work.blocks[position // self.block_size]
                self.store[block][position % self.block_size] = (position, token)
        drawn: list[tuple[Drawn, ...]] = []
        for work in plan.works:
            if work.draw is None:
                drawn.append(())
                continue
            prefix = self.read(work.blocks, work.start + len(work.tokens))
            draws = work.draw
            drawn.append(
                tuple(
                    Drawn(draw(draws.sampling.seed, choice, draws.position, prefix, draws.banned))
                    for choice in draws.choices
                )
            )
        return StepResult(tuple(drawn))

    def read(self, blocks: SequenceOf[int], length: int) -> list[int]:
        """The tokens of positions 0 … length - 1; 1000 + token where another position lies."""
        prefix = []
        for position in range(length):
            held, token = self.store[blocks[position // self.block_size]][position % self.block_size]
            prefix.append(token if held == position else 1000 + token)
        return prefix


def request(
    name: str,
    prompt: Iterable[int],
    max_tokens: int = 8,
    *,
    ignore_eos: bool = True,
    seed: int = 1,
    n: int = 1,
) -> Request:
    sampling = Sampling(max_tokens=max_tokens, ignore_eos=ignore_eos, seed=seed, n=n)
    return Request(id=name, prompt=tuple(prompt), sampling=sampling)


def prompt(length: int, salt: int = 0) -> tuple[int, ...]:
    return tuple((7 * i + 13 * salt + 3) % VOCABULARY for i in range(length))


class Backwards:
    """A policy with the newest first: what it preempts may have been planned already."""

    def share(self, running: SequenceOf[Sequence], waiting: Iterable[Sequence], now: float) -> list[Share]:
        return ContinuousBatching(9).share(running, waiting, now)[::-1]


class Bench:
    """A core, its runner, and all that it said."""

    def __init__(
        self,
        *,
        total: int = 64,
        block_size: int = 4,
        budget: int = 16,
        policy: BatchPolicy | None = None,
        prefix_cache: bool = True,
        max_length: int = 10_000,
        max_sequences: int = 16,
        queue_limit: int = 1000,
        queue: WaitingQueue | None = None,
        tiers: TierSettings | None = None,
    ) -> None:
        self.core = EngineCore(
            pool=BlockPool(total, block_size, prefix_cache),
            queue=FCFSQueue() if queue is None else queue,
            policy=ContinuousBatching(budget) if policy is None else policy,
            limits=Limits(max_length, max_sequences, queue_limit),
            eos_token_ids=frozenset({EOS}),
            tiers=tiers,
        )
        self.runner = ToyRunner(total, block_size, tiers.slots if tiers else 0)
        self.outcomes: list[StepOutcome] = []
        self.now = 0.0

    def step(self) -> StepOutcome | None:
        self.now += 1.0
        outcome = self.core.step(self.runner, self.now)
        self.core.check()
        if outcome is not None:
            self.outcomes.append(outcome)
        return outcome

    def drain(self, limit: int = 10_000) -> None:
        """Step until nobody can run."""
        for _ in range(limit):
            if self.step() is None:
                return
        raise AssertionError("it never comes to rest")

    @property
    def emitted(self) -> list[Emitted]:
        return [one for outcome in self.outcomes for one in outcome.emitted]

    def output(self, request_id: str, choice: int = 0) -> list[int]:
        """Its tokens, which came once each and in order."""
        mine = [one for one in self.emitted if one.key == (request_id, choice) and one.drawn is not None]
        assert [one.index for one in mine] == list(range(len(mine)))
        return [one.drawn.token for one in mine if one.drawn is not None]

    def finish(self, request_id: str, choice: int = 0) -> FinishReason | None:
        ends = [one.finish for one in self.emitted if one.key == (request_id, choice) and one.finish]
        assert len(ends) <= 1, "it ended twice"
        return ends[0] if ends else None
