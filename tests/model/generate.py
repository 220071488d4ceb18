"""A minimal engine for tests: sequences through a runner, chunk by chunk and then token by token."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field

from engine.plan import Draw, Drawn, StepPlan, Work
from engine.request import Sampling
from model.runner import ModelRunner

GREEDY = Sampling(max_tokens=64, temperature=0.0)


@dataclass
class Running:
    """One sequence: what is known of it, how much is computed, and where its KV lies."""

    prompt: Sequence[int]
    sampling: Sampling
    blocks: list[int]
    output: list[Drawn] = field(default_factory=list)
    computed: int = 0

    @property
    def known(self) -> list[int]:
        return [*self.prompt, *(drawn.token for drawn in self.output)]

    @property
    def done(self) -> bool:
        return len(self.output) == self.sampling.max_tokens

    def work(self, name: str, chunk: int) -> Work:
        tokens = self.known
        stop = min(len(tokens), self.computed + chunk)
        output = [drawn.token for drawn in self.output]
        draw = Draw(self.sampling, (0,), len(output), self.prompt, output) if stop == len(tokens) else None
        return Work(name, 0, tokens[self.computed : stop], self.computed, self.blocks, draw)


def generate(
    runner: ModelRunner,
    prompts: Sequence[Sequence[int]],
    samplings: Sequence[Sampling],
    *,
    chunk: int = 10**6,
    together: int = 1,
) -> list[list[Drawn]]:
    """Outputs of all prompts. At most `together` run at once; one joins a step, so chunks mix with decodes.

    Blocks lie in random order. Sequences finish when they have drawn max_tokens.
    """
    size = runner.kv.layout.block_size
    free = list(range(runner.kv.blocks))
    random.Random(0).shuffle(free)
    waiting = list(enumerate(zip(prompts, samplings, strict=True)))[::-1]
    running: dict[int, Running] = {}
    outputs: dict[int, list[Drawn]] = {}
    while waiting or running:
        if waiting and len(running) < together:
            index, (prompt, sampling) = waiting.pop()
            needed = -(-(len(prompt) + sampling.max_tokens) // size)
            running[index] = Running(prompt, sampling, [free.pop() for _ in range(needed)])
        works = [item.work(str(index), chunk) for index, item in running.items()]
        result = runner.run(StepPlan(tuple(works)))
        for index, work, drawn in zip(list(running), works, result.drawn, strict=True):
            item = running[index]
            item.computed += len(work.tokens)
            item.output.extend(drawn)
            if item.done:
                outputs[index] = item.output
                free.extend(item.blocks)
                del running[index]
    return [outputs[index] for index in range(len(prompts))]
