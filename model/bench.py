"""How fast a runner computes steps, and what the processor could do at best, measured in the same run.

Times are those of the calling thread's wall clock, one value a repetition: who reports them takes the
median for what a user sees and the minimum for what the code costs on a machine that others use too.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

from engine.errors import ConfigError
from engine.plan import Draw, StepPlan, Work
from engine.request import Sampling
from model.runner import ModelRunner

_GREEDY = Sampling(max_tokens=1, temperature=0.0, ignore_eos=True)
_ROUNDS = 7
_ENOUGH = 0.5
_FAR_BEYOND_CACHES = 2**28
_SQUARE = 1024


@dataclass(frozen=True, slots=True)
class Limits:
    """What one thread reaches: reads from memory in 10⁹ bytes/s, products in 10⁹ multiplications and
    additions a second, at matrices of 1024 × 1024 (the best of several rounds each)."""

    bandwidth_gbs: float
    bf16_gflops: float
    fp32_gflops: float
    int8_gops: float


def limits() -> Limits:
    """Measure the machine: about three seconds, 256 MiB."""
    with torch.inference_mode():
        read = _best(torch.ones(_FAR_BEYOND_CACHES // 8, dtype=torch.int64).sum)
        return Limits(
            bandwidth_gbs=_FAR_BEYOND_CACHES / read / 1e9,
            bf16_gflops=_products(torch.bfloat16),
            fp32_gflops=_products(torch.float32),
            int8_gops=_products(torch.int8),
        )


def decode(runner: ModelRunner, batch: int, context: int, steps: int) -> list[float]:
    """Seconds of each of `steps` decode steps: `batch` sequences, the first step at `context` positions.

    Greedy draws included. Raises ConfigError if the runner's KV cache is too small.
    """
    tables = _tables(runner, batch, context + steps)
    rng = random.Random(0)
    found = []
    for step in range(-1, steps):  # the first one, at step 0 too, only warms up
        position = context + max(step, 0) - 1
        works = tuple(
            Work(
                f"bench-{index}",
                0,
                [rng.randrange(runner.config.vocab_size)],
                position,
                table,
                Draw(_GREEDY, (0,), max(step, 0)),
            )
            for index, table in enumerate(tables)
        )
        found.append(_timed(runner, StepPlan(works)))
    return found[1:]


def prefill(runner: ModelRunner, tokens: int, repeats: int, *, before: int = 0) -> list[float]:
    """Seconds of each of `repeats` steps that prefill one prompt of `tokens` tokens and draw its first.

    With `before` so many tokens of the prompt have been computed already. Raises ConfigError if the
    runner's KV cache is too small.
    """
    (table,) = _tables(runner, 1, before + tokens)
    rng = random.Random(0)
    found = []
    for _ in range(repeats + 1):
        prompt = [rng.randrange(runner.config.vocab_size) for _ in range(tokens)]
        work = Work("bench", 0, prompt, before, table, Draw(_GREEDY, (0,), 0))
        found.append(_timed(runner, StepPlan((work,))))
    return found[1:]


def _tables(runner: ModelRunner, sequences: int, positions: int) -> list[list[int]]:
    """Block tables that share no block, in random order."""
    each = -(-positions // runner.kv.layout.block_size)
    if sequences * each > runner.kv.blocks:
        raise ConfigError(
            f"{sequences} sequences of {positions} positions take {sequences * each} blocks, "
            f"the KV cache has {runner.kv.blocks}: give it more memory",
            param="engine.kv_memory",
        )
    blocks = list(range(runner.kv.blocks))
    random.Random(0).shuffle(blocks)
    return [blocks[index * each : (index + 1) * each] for index in range(sequences)]


def _timed(runner: ModelRunner, plan: StepPlan) -> float:
    start = time.perf_counter()
    runner.run(plan)
    return time.perf_counter() - start


def _products(dtype: torch.dtype) -> float:
    """10⁹ operations a second of one square product; the products are torch's."""
    a, b = (torch.ones(_SQUARE, _SQUARE, dtype=dtype) for _ in range(2))
    multiply = torch._int_mm if dtype == torch.int8 else torch.mm
    return 2 * _SQUARE**3 / _best(lambda: multiply(a, b)) / 1e9


def _best(work: Callable[[], object]) -> float:
    """The least seconds of several rounds; the first, which allocates, is not counted where others follow.

    Fewer of what takes long: products that this processor does not have are seconds of emulation.
    """
    times: list[float] = []
    while len(times) <= _ROUNDS and sum(times) < _ENOUGH:
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return min(times[1:] or times)
