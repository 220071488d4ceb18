"""The estimator of slices against a real model: fitted on single steps, asked for whole slices."""

from __future__ import annotations

import statistics
import time

import pytest

from decode_pool.slices import fit
from engine.plan import Draw, StepPlan, Work
from engine.request import Sampling
from model.runner import ModelRunner


def timed(runner: ModelRunner, counts: int, length: int, tokens: int) -> float:
    """Seconds of a step of so many sequences, each computing its last `tokens` of `length`; best of three.

    Of the processor, not of the clock: other tests run beside.
    """
    size = -(-length // 16)
    draw = Draw(Sampling(max_tokens=10**6), (0,), 5)
    works = tuple(
        Work(f"r{i}", 0, [7 + (i + j) % 900 for j in range(tokens)], length - tokens,
             list(range(i * size, (i + 1) * size)), draw)
        for i in range(counts)
    )  # fmt: skip
    times = []
    for _ in range(3):
        begun = time.process_time()
        runner.run(StepPlan(works))
        times.append(time.process_time() - begun)
    return min(times)


def test_the_estimate_of_a_real_model_is_within_a_tenth_where_it_was_not_fitted(full: bool) -> None:
    """SmolLM2 on this machine: fitted on single steps, asked for whole slices of other sizes."""
    if not full:
        pytest.skip("times a real model: --full")
    runner = ModelRunner(blocks=400, block_size=16, threads=1)
    counts, lengths = (1, 2, 4, 8), (32, 128, 384)
    found = fit(
        [(n, one, timed(runner, n, one, one)) for n in counts for one in lengths],
        [(n, one, timed(runner, n, one, 1)) for n in counts for one in lengths],
    )
    errors = []
    for count, length, steps in ((6, 96, 16), (2, 256, 16), (3, 64, 32), (7, 200, 8)):
        seconds = timed(runner, count, length, length)
        seconds += sum(timed(runner, count, length + i + 1, 1) for i in range(steps))
        errors.append(abs(found.seconds(count, length, steps) / seconds - 1))
    assert statistics.fmean(errors) <= 0.10
