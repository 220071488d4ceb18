"""The bare engine as something to be measured, with a model whose every token is known."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

from cluster.bench.bare import BareEngine
from cluster.bench.workload import Objectives, closed, open_loop
from decode_pool.continuous_batching import ContinuousBatching
from engine.batch import Limits
from engine.blocks import BlockPool
from engine.core import EngineCore
from engine.plan import StepPlan, StepResult
from engine.queues.fcfs import FCFSQueue
from tests.cluster.doubles import ScriptedRunner

ANYTHING = Objectives(float("inf"), float("inf"))


class Clock:
    def now(self) -> float:
        return time.monotonic()


class Widths(ScriptedRunner):
    """Remembers how many sequences drew in each step."""

    def __init__(self) -> None:
        super().__init__()
        self.widths: list[int] = []

    def run(self, plan: StepPlan) -> StepResult:
        self.widths.append(sum(work.draw is not None for work in plan.works))
        return super().run(plan)


@contextmanager
def engine(runner: ScriptedRunner, max_length: int = 200) -> Iterator[BareEngine]:
    core = EngineCore(
        pool=BlockPool(256, 4, True),
        queue=FCFSQueue(),
        policy=ContinuousBatching(64),
        limits=Limits(max_length, 16, 256),
        eos_token_ids=frozenset(),
    )
    found = BareEngine("engine", core, runner, Clock(), range(200))
    try:
        yield found
        core.check()
        assert core.status().blocks_used == 0
        assert core.status().prefix_hits == 0
    finally:
        found.close()


def test_every_token_counts_once() -> None:
    with engine(ScriptedRunner()) as bare:
        work = closed("batch", "batch", requests=10, at_once=4, prompt="uniform:3:30", output="5", seed=0)
        found = bare.run(work, 0, ANYTHING)
        assert (found.requests, found.failed, found.cut) == (10, 0, 0)
        assert (found.output_tokens, found.events) == (50, 50)
        assert found.prompt_tokens == sum(one.prompt_tokens for one in work.arrivals)
        assert (found.tpot.count, found.itl.count) == (10, 40)


def test_no_more_run_at_once_than_may() -> None:
    runner = Widths()
    with engine(runner) as bare:
        bare.run(closed("batch", "b", requests=12, at_once=3, prompt="4", output="6", seed=0), 0, ANYTHING)
    assert max(runner.widths) == 3


def test_arrivals_come_in_their_time() -> None:
    with engine(ScriptedRunner()) as bare:
        work = open_loop(200.0, 1.0, requests=10, prompt="4", output="3", seed=0)
        found = bare.run(work, 0, ANYTHING)
        assert (found.failed, found.rate) == (0, 200.0)
        assert found.duration >= work.arrivals[-1].at - work.arrivals[0].at - found.client.late


def test_a_request_that_the_engine_refuses_has_failed_and_nothing_hangs() -> None:
    with engine(ScriptedRunner(), max_length=20) as bare:
        work = closed("batch", "b", requests=2, at_once=1, prompt="50", output="3", seed=0)
        found = bare.run(work, 0, ANYTHING)
        assert found.failed == 2 and "20" in found.errors[0]
