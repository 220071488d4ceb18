"""Decode steps on a GPU as recorded graphs: one launch a step, and the next one queued while it computes.

    launch(plan) ─▶ numbers to the device ─▶ graph of the next larger size ─▶ tokens to the host ─▶ marker
         └▶ wait() ─────────────────────────────────────────────────────────────────────────────────┘

A step of 13 rows runs the graph of 16, padded. Steps with chunks, with more rows than the largest graph, or
with several draws from one row are computed operation by operation. Whoever launches may go on before the
step is done; of two steps that are queued the later takes the earlier one's tokens where they lie.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Protocol

import torch

from engine.core import Runner
from engine.plan import Drawn, StepPlan, StepResult, Work
from kernels.dispatch import Kernels
from model.kv_cache import KVCache
from model.runner import ModelRunner
from model.sampler import Grammars, draw, is_simple
from model.static_step import StaticStep

Compute = Callable[[], None]
Wait = Callable[[], StepResult]
Capture = Callable[[Compute], Compute]
"""Turns a computation on buffers that stay in place into one that repeats it."""

_WARM = 2


class Marker(Protocol):
    """A place in the queue of a device."""

    def record(self) -> None: ...

    def synchronize(self) -> None: ...


class _Passed:
    """Where there is no queue: a CPU has done what it was told."""

    def record(self) -> None: ...

    def synchronize(self) -> None: ...


def stepper(runner: ModelRunner, sequences: int) -> Runner:
    """What an engine that runs up to `sequences` at once should step: graphs on a GPU, else the runner."""
    return runner if runner.device.type == "cpu" else GraphRunner.of(runner, sequences)


def sizes(rows: int) -> list[int]:
    """Rows of the graphs, ascending: 1, 2, 4, 8, then multiples of 16, and `rows`."""
    return sorted({size for size in (1, 2, 4, 8, *range(16, rows, 16)) if size < rows} | {rows})


def recorder() -> Capture:
    """Records CUDA graphs that share their scratch memory, since only one of them runs at a time."""
    pool = torch.cuda.graph_pool_handle()

    def record(compute: Compute) -> Compute:
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            # Compiles the kernels and gives libraries their workspaces, neither of which can be recorded.
            for _ in range(_WARM):
                compute()
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=pool):
            compute()
        return graph.replay

    return record


class GraphRunner:
    """A Runner whose `launch` returns at once. Both belong to one thread, and so does what they return."""

    def __init__(
        self,
        eager: Runner,
        step: StaticStep,
        cache: KVCache,
        kernels: Kernels,
        capture: Capture,
        grammars: Grammars | None = None,
    ) -> None:
        """eager: computes what no graph does, on the same cache. Records all sizes, the largest first."""
        self._eager, self._step, self._cache, self._kernels = eager, step, cache, kernels
        self._grammars = grammars
        with torch.inference_mode():
            self._graphs = {
                size: capture(functools.partial(step.compute, size)) for size in reversed(sizes(step.rows))
            }
        cuda = step.device.type == "cuda"
        self._sent: Marker = torch.cuda.Event() if cuda else _Passed()
        self._outputs = [
            (
                torch.zeros(step.rows, dtype=torch.int64, pin_memory=cuda),
                torch.cuda.Event() if cuda else _Passed(),
            )
            for _ in range(2)
        ]
        self._graph = self._graphs[step.rows]
        self._launched = 0
        self._last: Wait = _nothing
        self._on_device = False
        self.replayed = self.fed = 0

    @classmethod
    def of(cls, runner: ModelRunner, sequences: int) -> GraphRunner:
        """Graphs of a model on a GPU for up to `sequences` rows; takes some seconds."""
        with torch.inference_mode():
            step = StaticStep(runner.transformer, runner.kernels, runner.kv, runner.dtype, sequences)
        return cls(runner, step, runner.kv, runner.kernels, recorder(), runner.grammars)

    def run(self, plan: StepPlan) -> StepResult:
        return self.launch(plan)()

    def launch(self, plan: StepPlan) -> Wait:
        """Queue a step; what is returned waits for it and gives its result, again and again if asked.

        At most one earlier step may be queued and not waited for. `plan.fed` refers to that one.
        """
        fed = plan.fed if self._on_device else ()
        if not fed or not self._suits(plan):
            plan, fed = self._with_tokens(plan), ()
        self._last, self._on_device = _nothing, False
        if not self._suits(plan):
            result = self._eager.run(plan)
            self._last = lambda: result
            return self._last
        with torch.inference_mode():
            self._cache.copy(plan.copies)
            self._sent.synchronize()
            self._step.fill(plan.works, fed)
            self._sent.record()
            count = len(plan.works)
            self._graph = self._graphs[min(size for size in self._graphs if size >= count)]
            self._graph()
            self.replayed += 1
            self.fed += bool(fed)
            self._last = self._simple(plan.works) if _all_simple(plan.works) else self._adjusted(plan.works)
        return self._last

    def repeat(self) -> None:
        """Compute the last launched step again, without new numbers: to time the graph alone."""
        with torch.inference_mode():
            self._graph()

    def _suits(self, plan: StepPlan) -> bool:
        """Whether a graph computes it: one row a sequence, one draw a row, nothing swapped."""
        step = self._step
        if plan.out or plan.into:
            return False
        return 0 < len(plan.works) <= step.rows and all(
            len(work.tokens) == 1
            and len(work.blocks) <= step.width
            and (work.draw is None or len(work.draw.choices) == 1)
            for work in plan.works
        )

    def _with_tokens(self, plan: StepPlan) -> StepPlan:
        """The plan with the tokens that it takes from the step before, which is waited for."""
        if not plan.fed:
            return plan
        drawn = self._last().drawn
        works = (
            work._replace(tokens=[drawn[row][0].token])
            for work, row in zip(plan.works, plan.fed, strict=True)
        )
        return replace(plan, works=tuple(works), fed=())

    def _simple(self, works: Sequence[Work]) -> Wait:
        """The tokens that the graph has drawn, brought to the host when they are there."""
        buffer, done = self._outputs[self._launched % 2]
        self._launched += 1
        self._on_device = True
        count, drawing = len(works), [work.draw is not None for work in works]
        buffer[:count].copy_(self._step.drawn[:count], non_blocking=True)
        done.record()

        @functools.cache
        def wait() -> StepResult:
            done.synchronize()
            tokens = buffer[:count].tolist()
            return StepResult(
                tuple((Drawn(token),) if draws else () for token, draws in zip(tokens, drawing, strict=True))
            )

        return wait

    def _adjusted(self, works: Sequence[Work]) -> Wait:
        """Draws that need more than the kernel: penalties, bans, biases, grammars, log-probabilities."""
        rows = [row for row, work in enumerate(works) if work.draw is not None]
        logits = self._step.logits[: len(works)]
        if len(rows) < len(works):
            logits = logits[rows]
        draws = [work.draw for work in works if work.draw is not None]
        drawn = iter(draw(logits, draws, self._kernels, self._grammars))
        result = StepResult(tuple(() if work.draw is None else next(drawn) for work in works))
        return lambda: result


def _nothing() -> StepResult:
    raise ValueError("a step takes its tokens from one that could not be launched")


def _all_simple(works: Sequence[Work]) -> bool:
    return all(work.draw is None or is_simple(work.draw) for work in works)
