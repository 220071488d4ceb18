"""Decode steps on static buffers are those of the eager runner: padded, fed from the device, in any order.

Without a GPU nothing is recorded: what a graph would repeat is called instead, on the same buffers.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from decode_pool.continuous_batching import ContinuousBatching
from engine.batch import Limits
from engine.blocks import BlockPool
from engine.core import EngineCore
from engine.loop import EngineLoop
from engine.plan import Draw, StepPlan, StepResult, Work
from engine.queues.fcfs import FCFSQueue
from engine.request import Request, Sampling
from kernels import dispatch
from kernels.reference import draw_key
from model.block_rows import BlockRows
from model.cuda_graph import Capture, GraphRunner, sizes
from model.draw_keys import draw_keys
from model.runner import ModelRunner
from model.static_step import StaticStep
from tests.engine.mutants import mutate
from tests.engine.test_loop import SOON, Heard, Ticks
from tests.model import tiny
from tests.model.generate import generate

CPU = torch.device("cpu")
ROWS, BLOCK, BLOCKS, STEPS = 7, 4, 160, 6
SETTINGS = (
    Sampling(max_tokens=STEPS, temperature=0.0),
    Sampling(max_tokens=STEPS, temperature=0.9, top_p=0.9, seed=2**64 - 3),
    Sampling(max_tokens=STEPS, temperature=1.3, top_k=9, min_p=0.01, seed=5),
)
ADJUSTED = (
    Sampling(max_tokens=STEPS, temperature=0.7, seed=3, repetition_penalty=1.2, frequency_penalty=0.3),
    Sampling(max_tokens=STEPS, temperature=0.0, logprobs=3),
    Sampling(max_tokens=STEPS, temperature=0.0, logit_bias=((5, 4.0),)),
)


def tokens(result: StepResult) -> list[list[int]]:
    return [[drawn.token for drawn in row] for row in result.drawn]


class Pair:
    """The same model twice: step by step as operations, and on static buffers of seven rows."""

    def __init__(self, path: Path) -> None:
        # The plain definitions: what they do with rows that pad is what the GPU's kernels are held to.
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(dispatch, "choose", dispatch.plain)
            self.pair(path, "cpu", "float64", lambda compute: compute)
        self.tolerance = 1e-9

    def pair(self, path: Path, device: str, dtype: str, capture: Capture) -> None:
        self.eager, self.other = (
            ModelRunner(path, dtype=dtype, device=device, blocks=BLOCKS, block_size=BLOCK) for _ in range(2)
        )
        other = self.other
        with torch.inference_mode():
            step = StaticStep(other.transformer, other.kernels, other.kv, other.dtype, ROWS)
            for runner in (self.eager, self.other):
                runner.kv.pool.fill_(float("nan"))
        self.graphs = GraphRunner(other, step, other.kv, other.kernels, capture)

    def same_memory(self) -> None:
        """What no sequence has written is NaN in both, everything else equal."""
        torch.testing.assert_close(
            self.other.kv.pool, self.eager.kv.pool, rtol=0, atol=self.tolerance, equal_nan=True
        )


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.write_gguf(tmp_path_factory.mktemp("tiny") / "model.gguf", tiny.weights())


@pytest.fixture
def pair(path: Path) -> Pair:
    return Pair(path)


class Batch:
    """Sequences of random prompts in random blocks, prefilled in both runners."""

    def __init__(self, pair: Pair, count: int, settings: Sequence[Sampling], seed: int = 0) -> None:
        rng = random.Random(seed)
        blocks = rng.sample(range(BLOCKS), BLOCKS)
        self.pair = pair
        self.settings = [settings[index % len(settings)] for index in range(count)]
        self.prompts = [
            [rng.randrange(3, tiny.VOCABULARY) for _ in range(rng.randrange(1, 19))] for _ in range(count)
        ]
        self.outputs: list[list[int]] = [[] for _ in range(count)]
        self.spare = [[blocks.pop() for _ in range(8)] for _ in range(count)]
        self.tables: list[list[int]] = [[] for _ in range(count)]
        self.prefill()

    def prefill(self) -> None:
        for index, prompt in enumerate(self.prompts):
            self.grow(index, len(prompt))
            work = Work(f"r{index}", 0, prompt, 0, self.tables[index], self.draw(index))
            plan = StepPlan((work,))
            (((drawn,),),) = (self.pair.eager.run(plan).drawn,)
            self.pair.other.run(plan)
            self.outputs[index].append(drawn.token)

    def grow(self, index: int, length: int) -> None:
        while len(self.tables[index]) * BLOCK < length:
            self.tables[index].append(self.spare[index].pop())

    def draw(self, index: int, position: int = 0) -> Draw:
        sampling = self.settings[index]
        if sampling.has_penalties:
            output = tuple(self.outputs[index])
            return Draw(sampling, (0,), position, tuple(self.prompts[index]), output)
        return Draw(sampling, (0,), position, banned=frozenset({7}) if index % 5 == 4 else frozenset())

    def plan(self, members: Sequence[int], ahead: int = 0) -> StepPlan:
        """The next step of some; with `ahead` the one after, whose tokens are not known yet."""
        works = []
        for index in members:
            start = len(self.prompts[index]) + len(self.outputs[index]) - 1 + ahead
            self.grow(index, start + 1)
            token = 0 if ahead else self.outputs[index][-1]
            position = len(self.outputs[index]) + ahead
            works.append(Work(f"r{index}", 0, [token], start, self.tables[index], self.draw(index, position)))
        return StepPlan(tuple(works), fed=tuple(range(len(works))) if ahead else ())

    def learn(self, members: Sequence[int], result: StepResult) -> None:
        for index, (drawn,) in zip(members, result.drawn, strict=True):
            self.outputs[index].append(drawn.token)


def lives(pair: Pair, settings: Sequence[Sampling], seed: int = 0) -> None:
    """Batches of every size, whose members come and go: tokens and memory equal those of the eager runner."""
    batch, rng = Batch(pair, 9, settings, seed), random.Random(seed)
    for size in (1, 3, 7, 6, 2, 7, 5):
        members = rng.sample(range(9), size)
        plan = batch.plan(members)
        expected, got = pair.eager.run(plan), pair.graphs.run(plan)
        assert tokens(got) == tokens(expected)
        for ours, theirs in zip(got.drawn, expected.drawn, strict=True):
            assert [one.top and one.top[0][0] for one in ours] == [
                one.top and one.top[0][0] for one in theirs
            ]
        batch.learn(members, expected)
        pair.same_memory()


def test_odd_batches_equal_the_eager_steps_and_write_nothing_else(pair: Pair) -> None:
    lives(pair, SETTINGS)
    assert pair.graphs.replayed == 7


def test_draws_that_need_more_than_the_kernel_equal_those_of_the_eager_steps(pair: Pair) -> None:
    lives(pair, SETTINGS + ADJUSTED)


def ahead(pair: Pair, settings: Sequence[Sampling], seed: int = 1) -> None:
    """Two steps are queued before the first is waited for; in between one sequence leaves."""
    batch = Batch(pair, 5, settings, seed)
    members = [0, 1, 2, 3]
    for leaves in (None, 3, None, 0):
        first = batch.plan(members)
        staying = [index for index in members if index != leaves]
        second = batch.plan(staying, ahead=1)
        second = replace(second, fed=tuple(members.index(index) for index in staying))
        early, late = pair.graphs.launch(first), pair.graphs.launch(second)
        expected = pair.eager.run(first)
        batch.learn(members, expected)
        assert tokens(early()) == tokens(expected)
        members = staying
        expected = pair.eager.run(batch.plan(members))
        assert tokens(late()) == tokens(expected)
        assert late() is late()
        batch.learn(members, expected)
        pair.same_memory()


def test_a_step_takes_the_tokens_of_the_one_before_where_they_lie(pair: Pair) -> None:
    ahead(pair, SETTINGS)
    assert pair.graphs.fed == 4


def test_a_step_takes_tokens_that_only_the_host_has(pair: Pair) -> None:
    ahead(pair, ADJUSTED[1:])
    assert pair.graphs.fed == 0


def test_what_no_graph_computes_is_computed_by_the_eager_runner(pair: Pair) -> None:
    batch = Batch(pair, 9, SETTINGS)
    everybody = batch.plan(range(9))
    chunk = StepPlan(
        (Work("new", 0, [5, 6, 7], 0, [batch.spare[8][0]], batch.draw(0)), *batch.plan([1]).works)
    )
    choices = StepPlan((batch.plan([2]).works[0]._replace(draw=Draw(SETTINGS[1], (0, 1, 2), 1)),))
    for plan in (everybody, chunk, choices, StepPlan(())):
        assert pair.graphs.run(plan) == pair.eager.run(plan)
        pair.same_memory()
    assert pair.graphs.replayed == 0


def test_blocks_are_copied_before_the_step_writes(pair: Pair) -> None:
    batch = Batch(pair, 1, SETTINGS)
    work = batch.plan([0]).works[0]
    last = work.start // BLOCK
    target = batch.spare[0][0]
    table = [*work.blocks[:last], target]
    plan = StepPlan((work._replace(blocks=table),), copies=((work.blocks[last], target),))
    assert pair.graphs.run(plan) == pair.eager.run(plan)
    pair.same_memory()


def live_and_look_ahead(pair: Pair) -> None:
    lives(pair, SETTINGS)
    ahead(pair, SETTINGS)


def through_an_engine(pair: Pair, settings: Sequence[Sampling]) -> list[list[int]]:
    """The answers of an engine that steps the graphs, to prompts that come one after another."""
    core = EngineCore(
        pool=BlockPool(BLOCKS, BLOCK, True),
        queue=FCFSQueue(),
        policy=ContinuousBatching(12),
        limits=Limits(max_length=tiny.CONTEXT, max_sequences=ROWS),
        eos_token_ids=frozenset(pair.eager.eos_token_ids),
    )
    heard = Heard()
    loop = EngineLoop(core, pair.graphs, heard, Ticks(), name="graphs")
    loop.start()
    rng = random.Random(4)
    prompts = [
        tuple(rng.randrange(3, tiny.VOCABULARY) for _ in range(rng.randrange(1, 30))) for _ in settings
    ]
    for index, (prompt, sampling) in enumerate(zip(prompts, settings, strict=True)):
        one = Request(id=str(index), prompt=prompt, sampling=sampling)
        loop.call(lambda core, one=one: core.submit(one)).result(SOON)
    heard.ends(len(settings))
    loop.call(EngineCore.check).result(SOON)
    loop.stop(SOON)
    answers: list[list[int]] = [[] for _ in settings]
    for one in heard.emitted:
        assert one.drawn is not None
        answers[int(one.key.request_id)].append(one.drawn.token)
    ends = pair.eager.eos_token_ids
    for answer, output in zip(answers, generate(pair.eager, prompts, list(settings)), strict=True):
        alone = [drawn.token for drawn in output]
        length = next((place + 1 for place, token in enumerate(alone) if token in ends), len(alone))
        assert answer == alone[:length]
    return answers


def engines(pair: Pair) -> None:
    settings = [replace(one, max_tokens=20 + n) for n, one in enumerate(SETTINGS * 3)]
    answers = through_an_engine(pair, settings)
    assert len({tuple(answer) for answer in answers}) == 9
    assert pair.graphs.fed > 5
    through_an_engine(pair, [replace(one, max_tokens=20) for one in (SETTINGS + ADJUSTED) * 2])


def test_an_engine_answers_the_same_with_graphs_and_looks_ahead(pair: Pair) -> None:
    engines(pair)


MUTANTS = {
    "rows that pad write to the first slot": (
        StaticStep, "fill", "integers[_SLOT, count:] = integers[_FED, count:] = -1",
        "integers[_FED, count:] = -1",
    ),
    "the slot of the position before": (
        StaticStep, "fill", "+ work.start % size", "+ (work.start - 1) % size",
    ),
    "a row's own position is not seen": (StaticStep, "fill", "start + 1 for", "start for"),
    "tokens of the step before are not taken": (StaticStep, "compute", "fed >= 0,", "fed > 99,"),
    "tables are only lengthened": (
        BlockRows, "update", "len(known) if blocks[: len(known)] == known else 0",
        "min(len(known), len(blocks))",
    ),
    "seeds are forgotten": (StaticStep, "_fill_draws", "if chance:", "if False:"),
    "the graph of one row less": (GraphRunner, "launch", "size >= count", "size >= count - 1"),
}  # fmt: skip


@pytest.mark.parametrize("name", MUTANTS)
def test_a_wrong_step_is_noticed(name: str, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mutate(monkeypatch, *MUTANTS[name])
    pair = Pair(path)
    with pytest.raises((AssertionError, ValueError)):
        live_and_look_ahead(pair)


def test_graphs_are_few_and_the_largest_holds_everybody() -> None:
    assert sizes(1) == [1]
    assert sizes(7) == [1, 2, 4, 7]
    assert sizes(64) == [1, 2, 4, 8, 16, 32, 48, 64]
    for rows in range(1, 300):
        assert sizes(rows)[-1] == rows
        assert max(big - small for small, big in zip([0, *sizes(rows)], sizes(rows), strict=False)) <= 16


def test_keys_of_many_draws_are_those_of_each() -> None:
    rng = random.Random(0)
    names = [(rng.getrandbits(70) - 2**69, rng.randrange(9), rng.randrange(10**6)) for _ in range(50)]
    assert draw_keys(names).T.tolist() == [list(draw_key(*name)) for name in names]


def test_rows_of_blocks_follow_their_tables() -> None:
    rng = random.Random(0)
    rows = BlockRows(40, 9, CPU)
    tables = [[rng.randrange(99)] for _ in range(40)]
    for _ in range(60):
        for table in rng.sample(tables, rng.choice((0, 1, 5, 36))):
            match rng.randrange(3):
                case 0 if len(table) < 9:
                    table.append(rng.randrange(99))
                case 1:
                    table[:] = [rng.randrange(99) for _ in range(rng.randrange(1, 10))]
                case _:
                    table[-1] = rng.randrange(99)
        rng.shuffle(tables)
        shown = tables[: rng.randrange(1, 41)]
        rows.update(shown)
        for row, table in enumerate(shown):
            assert rows.table[row, : len(table)].tolist() == table
    assert rows.update(shown) == 0
