"""Real KV between instances whose blocks, and ranks' shares of the heads, are not alike: the same tokens."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from engine.batch import Limits
from engine.blocks import BlockPool
from engine.core import EngineCore
from engine.loop import EngineLoop
from engine.plan import StepPlan, StepResult
from engine.queues.fcfs import FCFSQueue
from engine.request import Request, Sampling
from engine.sequence import START
from kernels import dispatch
from migration.cut import Cut
from migration.session import Bounds
from model.kv_cache import KVCache
from model.kv_ranks import RankedKV
from model.runner import ModelRunner
from prefill_pool.chunked_prefill import ChunkedPrefill
from tests.cluster.tiny_model import KV_HEADS, make_tiny_model
from tests.engine.mutants import mutate
from tests.migration.pair import BOUND, Engine, Home, Pair, _Clock, _Sink, pair

CPU = torch.device("cpu")
POOL = 2048
"""Tokens of each instance's KV cache."""


class SplitRunner:
    """A runner whose KV lies with ranks: each holds its own heads, and nobody holds them all between steps.

    Gives `inner` the blocks of a step for as long as that runs; ranks proper would compute with their own.
    """

    def __init__(self, inner: ModelRunner, ranks: Sequence[KVCache]) -> None:
        self._inner = inner
        self._ranks = ranks

    def run(self, plan: StepPlan) -> StepResult:
        used = {block for work in plan.works for block in work.blocks}
        blocks = sorted(used.union(*plan.copies)) if plan.copies else sorted(used)
        pool = self._inner.kv.pool
        pool.zero_()
        pool[:, :, blocks] = torch.cat([rank.pool[:, :, blocks] for rank in self._ranks], dim=4)
        result = self._inner.run(plan)
        first = 0
        for rank in self._ranks:
            last = first + rank.layout.kv_heads
            rank.pool[:, :, blocks] = pool[:, :, blocks, :, first:last]
            first = last
        return result


class ModelEngine(Engine):
    """One instance with a real model. `heads` are those of each rank; one rank has them all."""

    def __init__(self, name: str, home: Home, folder: Path, block_size: int, heads: Sequence[int]) -> None:
        self.name, self.home = name, home
        blocks = POOL // block_size
        inner = ModelRunner(folder, blocks=blocks, block_size=block_size)
        layout = inner.kv.layout
        ranks = [
            KVCache(replace(layout, kv_heads=count), blocks, CPU, dispatch.choose(CPU)) for count in heads
        ]
        runner = inner if len(ranks) == 1 else SplitRunner(inner, ranks)
        self.store = inner.kv if len(ranks) == 1 else RankedKV(ranks)  # type: ignore[assignment]
        self.core = EngineCore(
            pool=BlockPool(blocks, block_size),
            queue=FCFSQueue(),
            policy=ChunkedPrefill(32, block_size),
            limits=Limits(max_length=1000, max_sequences=16),
            eos_token_ids=frozenset(),
        )
        self.loop = EngineLoop(self.core, runner, _Sink(self), _Clock(), name=name)
        self.loop.start()


End = tuple[int, tuple[int, ...]]
"""Block size and heads of each rank."""


@contextmanager
def instances(folder: Path, source: End, destination: End, **options: object) -> Iterator[Pair]:
    ends = {"p": source, "d": destination}

    def made(name: str, home: Home, **_: object) -> Engine:
        return ModelEngine(name, home, folder, *ends[name])

    with pair(made=made, **options) as both:
        yield both


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_model(tmp_path_factory.mktemp("layouts") / "tiny")


def requests() -> list[Request]:
    generator = torch.Generator().manual_seed(5)

    def tokens(length: int) -> tuple[int, ...]:
        return tuple(torch.randint(0, 250, (length,), generator=generator).tolist())

    greedy = Sampling(max_tokens=40, temperature=0.0, ignore_eos=True)
    sampled = replace(greedy, temperature=0.8, seed=3, n=2, frequency_penalty=0.5, logprobs=2)
    shapes = [(1, greedy), (31, sampled), (64, greedy), (77, sampled)]
    return [Request(f"r{length}", tokens(length), sampling) for length, sampling in shapes]


@pytest.fixture(scope="module")
def unmoved(folder: Path) -> dict[tuple[str, int], list[int]]:
    """The outputs of an instance of its own, with blocks of 16, from which nothing moves."""
    home = Home()
    engine = ModelEngine("alone", home, folder, 16, (KV_HEADS,))
    found = {}
    for one in requests():
        home.open(one, START)
        engine.loop.call(lambda core, one=one: core.submit(one, home="home")).result(BOUND)
        for choice in range(one.sampling.n):
            found[one.id, choice] = home.output(one, choice)
    engine.loop.stop(BOUND)
    return found


WHOLE, SPLIT = (KV_HEADS,), (1,) * KV_HEADS
PAIRS = [
    ((8, WHOLE), (32, WHOLE)),
    ((32, WHOLE), (8, WHOLE)),
    ((16, WHOLE), (16, SPLIT)),
    ((16, SPLIT), (16, WHOLE)),
    ((8, SPLIT), (32, WHOLE)),
    ((12, WHOLE), (32, SPLIT)),
]


def handed_over(folder: Path, unmoved: dict[tuple[str, int], list[int]], source: End, to: End) -> None:
    """By handoff, and then back by live migration while it decodes."""
    with instances(folder, source, to, bounds=Bounds(last_blocks=2, moves=16)) as both:
        back = both.ends[0].receiver.address
        every = requests()
        both.start(*every)
        moves = []
        for one in every:
            both.home.wait(lambda one=one: both.d.name in both.home.pushers(one))
            moves.append(both.decode.move(one.id, back, "a test"))
        for one in every:
            for choice in range(one.sampling.n):
                assert both.home.output(one, choice) == unmoved[one.id, choice], one.id
        outcomes = [move.result(BOUND) for move in moves]
        assert sum(move.committed for move in outcomes) >= len(every) / 2, outcomes
        both.rest()
        assert both.sender.handed == len(every)


@pytest.mark.parametrize(("source", "to"), PAIRS, ids=str)
def test_tokens_are_the_same_whatever_the_layouts(
    folder: Path, unmoved: dict[tuple[str, int], list[int]], source: End, to: End
) -> None:
    handed_over(folder, unmoved, source, to)


Mutant = Callable[[pytest.MonkeyPatch], None]
MUTANTS: dict[str, tuple[End, End, Mutant]] = {
    "pieces out of place": (
        (8, WHOLE),
        (32, WHOLE),
        lambda patch: mutate(patch, Cut, "_slots", "piece.start : piece.start + self.size", "-self.size :"),
    ),
    "every rank takes the first heads": (
        (16, WHOLE),
        (16, SPLIT),
        lambda patch: mutate(patch, RankedKV, "scatter", "first = last", "first = 0; last = 1"),
    ),
    "slots one too far": (
        (32, WHOLE),
        (8, WHOLE),
        lambda patch: mutate(
            patch,
            Cut,
            "_slots",
            "piece.start : piece.start + self.size",
            "piece.start + 1 : piece.start + 1 + self.size",
        ),
    ),
}


@pytest.mark.parametrize("name", MUTANTS)
def test_a_wrong_layout_would_be_noticed(
    name: str,
    folder: Path,
    unmoved: dict[tuple[str, int], list[int]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    source, to, break_it = MUTANTS[name]
    break_it(monkeypatch)
    with pytest.raises(AssertionError):
        handed_over(folder, unmoved, source, to)
