"""Measures an instance's engine in this process: steps against batch, context and length, and workloads.

Every figure stands beside what the machine could do at best, measured in the same run.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from cluster.bench.bare import BareEngine
from cluster.bench.load import Advance
from cluster.bench.machine import Machine
from cluster.bench.report import Figure, figures_of
from cluster.bench.result import Result
from cluster.bench.roofline import Roofs, Shape
from cluster.bench.serve import Plan
from cluster.bench.statistics import Spread, Value
from cluster.bench.words import WORDS
from cluster.bench.workload import Objectives
from cluster.config import Config
from cluster.instance import MonotonicClock, engine_core, load_runner
from cluster.policies import role_policy
from decode_pool.instance import DecodeInstance
from model import bench
from model.cuda_graph import stepper
from model.runner import ModelRunner
from model.tokenizer import Tokenizer

NAME = "engine"
STEPS = 8
"""Decode steps of one point; the spread is over them."""


class DecodePoint(Value):
    """A decode step of `batch` sequences at `context` positions each; `limit` is the roofline's, seconds."""

    batch: int
    context: int
    seconds: Spread
    limit: float


class PrefillPoint(Value):
    """A step that reads a prompt of `tokens` at once and draws its first token; seconds."""

    tokens: int
    seconds: Spread
    limit: float


class EngineReport(Value):
    """The item of `tandem bench engine -o json`. `results` and `figures` are as in a ServeReport."""

    command: str
    machine: Machine
    settings: dict[str, str]
    shape: Shape
    threads: int
    roofs: Roofs
    decode: tuple[DecodePoint, ...]
    prefill: tuple[PrefillPoint, ...]
    results: tuple[Result, ...]
    figures: tuple[Figure, ...]


@dataclass(frozen=True, slots=True)
class Grid:
    """What is measured: every batch with every context that fits the KV cache, and prompts of each length."""

    batches: tuple[int, ...] = (1, 2, 4, 8, 16, 32, 64)
    contexts: tuple[int, ...] = (128, 512, 1024, 2048, 4096, 8192)
    lengths: tuple[int, ...] = (32, 128, 512, 1024, 2048)
    repetitions: int = 3


def shape_of(runner: ModelRunner) -> Shape:
    model, layout = runner.config, runner.kv.layout
    sizes = {name: tensor.nbytes for name, tensor in runner.weights.items()}
    looked_up = sizes["embedding"] if "head" in sizes else 0
    return Shape(
        dtype=layout.dtype,
        weights=runner.weights_format,
        layers=model.layers,
        hidden=model.hidden_size,
        intermediate=model.intermediate_size,
        heads=model.heads,
        kv_heads=model.kv_heads,
        head_dim=model.head_dim,
        vocabulary=model.vocab_size,
        weight_bytes=sum(sizes.values()) - looked_up,
        kv_bytes=runner.kv.block_nbytes // layout.block_size,
        activations=runner.activations,
    )


def roofs() -> Roofs:
    """Measured now, with the threads that torch has. Takes seconds."""
    found = bench.limits()
    return Roofs(
        bandwidth=found.bandwidth_gbs * 1e9,
        bfloat16=found.bf16_gflops * 1e9,
        float32=found.fp32_gflops * 1e9,
        int8=found.int8_gops * 1e9,
    )


def bare_engine(config: Config, runner: ModelRunner) -> BareEngine:
    """The engine of a decode instance, which prefills too, in this process."""
    core = engine_core(config, role_policy(config.engine, DecodeInstance.role), runner)
    pool = tuple(dict.fromkeys(Tokenizer(runner.assets).encode(" " + " ".join(WORDS), add_bos=False)))
    return BareEngine(NAME, core, stepper(runner, config.engine.max_sequences), MonotonicClock(), pool)


def measure(
    config: Config,
    threads: int,
    grid: Grid,
    plans: Sequence[Plan],
    objectives: Objectives,
    *,
    begin: Callable[[str], Advance],
    say: Callable[[str], None],
    took: Callable[[Result], None],
) -> EngineReport:
    """Load the model and measure it; `begin`, `say` and `took` are told how it goes. Raises SetupError."""
    machine = Machine.here()
    begin("loading the model")
    runner, device = load_runner(config, threads)
    shape = shape_of(runner)
    begin("measuring the machine")
    before = roofs()
    decode = _decode(runner, grid, begin("decode steps"), say)
    prefill = _prefill(runner, grid, begin("prefill steps"), say)
    begin("measuring the machine again")
    limits = before.higher(roofs())
    results = _workloads(config, runner, plans, grid.repetitions, objectives, begin, took)
    return EngineReport(
        command="engine",
        machine=machine,
        settings={
            "model": config.model.name or runner.assets.name,
            "device": device,
            "token_budget": str(config.engine.token_budget),
        },
        shape=shape,
        threads=threads,
        roofs=limits,
        decode=tuple(
            DecodePoint(
                batch=batch,
                context=context,
                seconds=seconds,
                limit=shape.decode_limit(batch, context, limits),
            )
            for (batch, context), seconds in decode.items()
        ),
        prefill=tuple(
            PrefillPoint(tokens=tokens, seconds=seconds, limit=shape.prefill_limit(tokens, limits))
            for tokens, seconds in prefill.items()
        ),
        results=tuple(results),
        figures=_figures(results),
    )


def _decode(
    runner: ModelRunner, grid: Grid, advance: Advance, say: Callable[[str], None]
) -> dict[tuple[int, int], Spread]:
    """Steps by batch and context."""
    size, longest = runner.kv.layout.block_size, runner.config.context_length - STEPS
    asked = dict.fromkeys(
        (batch, min(context, longest))
        for batch in grid.batches
        for context in grid.contexts
        if batch * -(-(min(context, longest) + STEPS) // size) <= runner.kv.blocks
    )
    points = {}
    for number, (batch, context) in enumerate(asked, 1):
        seconds = Spread.of(bench.decode(runner, batch, context, STEPS))
        points[batch, context] = seconds
        say(f"decode · batch {batch} · context {context} · {seconds.median * 1e3:.2f} ms")
        advance(number, len(asked))
    return points


def _prefill(
    runner: ModelRunner, grid: Grid, advance: Advance, say: Callable[[str], None]
) -> dict[int, Spread]:
    """Steps by the length of their prompt."""
    room = min(runner.kv.blocks * runner.kv.layout.block_size, runner.config.context_length)
    lengths = [length for length in grid.lengths if length <= room]
    points = {}
    for number, tokens in enumerate(lengths, 1):
        points[tokens] = Spread.of(bench.prefill(runner, tokens, grid.repetitions))
        say(f"prefill · {tokens} tokens · {tokens / points[tokens].median:,.0f} tok/s")
        advance(number, len(lengths))
    return points


def _workloads(
    config: Config,
    runner: ModelRunner,
    plans: Sequence[Plan],
    repetitions: int,
    objectives: Objectives,
    begin: Callable[[str], Advance],
    took: Callable[[Result], None],
) -> list[Result]:
    engine = bare_engine(config, runner)
    results = []
    try:
        for repetition in range(repetitions):
            for plan in plans:
                workload = plan(repetition)
                advance = begin(f"{workload.name}, {repetition + 1} of {repetitions}")
                results.append(engine.run(workload, repetition, objectives, advance=advance))
                took(results[-1])
    finally:
        engine.close()
    return results


def _figures(results: Sequence[Result]) -> tuple[Figure, ...]:
    columns: dict[tuple[str, str], list[float]] = {}
    for result in results:
        for name, value in figures_of(result).items():
            columns.setdefault((result.test, name), []).append(value)
    return tuple(
        Figure(server=NAME, test=test, figure=name, spread=Spread.of(values))
        for (test, name), values in columns.items()
    )
