"""Measures what steps cost on this machine, as a table for the simulator and as figures for the config.

steps of prompts by new and cached tokens ─┐
steps of decodes by number and context ────┴▶ iteration table (CSV) ─▶ simulator.cost_tables.load
                                           └▶ least squares ─▶ engine.step_cost
"""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from statistics import median

from engine.cost_model import Batch
from model import bench
from model.runner import ModelRunner

COLUMNS = (
    "system", "framework", "framework_version", "model", "tp", "phase", "batch",
    "new_tokens_per_request", "context_tokens", "latency_ms",
)  # fmt: skip

STEPS = 6
"""Measured steps of each point; their median counts."""


@dataclass(frozen=True, slots=True)
class Step:
    """A measured step. Of a prompt: `batch` is 1, `new` tokens after `context` cached ones. Of decodes:
    `batch` sequences, one new token each, `context` tokens on the average. `seconds` is the median.
    """

    phase: str
    batch: int
    new: int
    context: int
    seconds: float

    @property
    def work(self) -> Batch:
        if self.phase == "prefill":
            return Batch(((self.new, self.context),))
        return Batch((), self.batch, self.batch * self.context)


@dataclass(frozen=True, slots=True)
class Grid:
    """What is measured, as far as it fits the KV cache and the model."""

    batches: Sequence[int] = (1, 2, 4, 8, 16, 32)
    contexts: Sequence[int] = (64, 256, 1024, 2048)
    lengths: Sequence[int] = (1, 16, 64, 128, 256, 512)
    cached: Sequence[int] = (0, 512, 1024)


def measure(runner: ModelRunner, grid: Grid, say: Callable[[str], None]) -> list[Step]:
    """All points that fit; takes seconds to minutes."""
    size, slots = runner.kv.layout.block_size, runner.kv.blocks * runner.kv.layout.block_size
    longest = min(runner.config.context_length, slots) - STEPS - 1
    found = []
    for tokens in grid.lengths:
        for before in grid.cached:
            if before + tokens <= longest:
                seconds = median(bench.prefill(runner, tokens, STEPS, before=before))
                found.append(Step("prefill", 1, tokens, before, seconds))
                say(f"prefill · {tokens} tokens after {before} · {seconds * 1e3:.2f} ms")
    for batch in grid.batches:
        for context in grid.contexts:
            if context <= longest and batch * -(-(context + STEPS) // size) <= runner.kv.blocks:
                seconds = median(bench.decode(runner, batch, context, STEPS))
                found.append(Step("decode", batch, 1, context, seconds))
                say(f"decode · batch {batch} · context {context} · {seconds * 1e3:.2f} ms")
    return found


def table(steps: Iterable[Step], *, system: str, model: str, version: str) -> str:
    """A CSV that `simulator.cost_tables.load` reads."""
    text = io.StringIO()
    rows = csv.writer(text, lineterminator="\n")
    rows.writerow(COLUMNS)
    for one in steps:
        rows.writerow(
            (
                *(system, "tandem", version, model, 1, one.phase, one.batch, one.new, one.context),
                f"{one.seconds * 1e3:.4f}",
            )
        )
    return text.getvalue()
