"""A runner takes any mix of chunks and decodes, and gives each sequence what it would get alone."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import torch

from engine.errors import ConfigError, SetupError
from engine.plan import Draw, StepPlan, StepResult, Work
from engine.request import Sampling
from kernels import dispatch
from model.runner import ModelRunner
from tests.model import tiny
from tests.model.generate import generate


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.write_gguf(tmp_path_factory.mktemp("tiny") / "model.gguf", tiny.weights())


@pytest.fixture
def small(path: Path) -> ModelRunner:
    return ModelRunner(path, dtype="float64", blocks=40, block_size=4)


def prompt(length: int, seed: int = 0) -> list[int]:
    rng = random.Random(seed)
    return [rng.randrange(3, tiny.VOCABULARY) for _ in range(length)]


def setting(**changes: object) -> Sampling:
    return Sampling(max_tokens=10, **changes)  # type: ignore[arg-type]


def whole(tokens: list[int], blocks: list[int], draw: Draw | None = None, name: str = "a") -> Work:
    return Work(name, 0, tokens, 0, blocks, draw)


def drawing(position: int = 0, **changes: object) -> Draw:
    return Draw(setting(**changes), (0,), position)


@pytest.mark.parametrize("chunk", [1, 3, 64])
def test_sampled_text_is_the_same_alone_and_in_a_batch(small: ModelRunner, chunk: int) -> None:
    prompts = [prompt(3 + 2 * n, seed=n) for n in range(6)]
    settings = [setting(seed=n, temperature=0.9, top_p=0.95, repetition_penalty=1.05) for n in range(6)]
    alone = generate(small, prompts, settings)
    assert generate(small, prompts, settings, chunk=chunk, together=4) == alone
    assert len({tuple(drawn.token for drawn in output) for output in alone}) == 6


def test_the_embedded_model_samples_the_same_in_a_batch_of_sixteen(runner: ModelRunner) -> None:
    prompts = [[1, 4093, 198, 1780 + n, 314] for n in range(16)]
    settings = [setting(seed=n) for n in range(16)]
    together = generate(runner, prompts, settings, together=16)
    assert together[::5] == generate(runner, prompts[::5], settings[::5])


def test_works_without_a_draw_give_nothing(small: ModelRunner) -> None:
    works = (
        whole(prompt(5), [0, 1]),
        whole(prompt(6), [2, 3], drawing()),
        whole(prompt(1), [4], drawing()),
        whole(prompt(1), [5]),
    )
    result = small.run(StepPlan(works))
    assert [len(drawn) for drawn in result.drawn] == [0, 1, 1, 0]


def test_the_order_of_works_does_not_matter(small: ModelRunner) -> None:
    lengths = (1, 7, 1, 2, 30)
    works = [
        whole(prompt(length, seed=n), list(range(8 * n, 8 * n + 8)), drawing(seed=n))
        for n, length in enumerate(lengths)
    ]
    forwards = small.run(StepPlan(tuple(works)))
    assert small.run(StepPlan(tuple(works[::-1]))).drawn == forwards.drawn[::-1]


def test_copies_come_before_everything_is_written(small: ModelRunner) -> None:
    tokens = prompt(9)
    small.run(StepPlan((whole(tokens[:7], [0, 1]),)))
    expected = small.logits([whole(tokens, [4, 5, 6])])[-2:]
    copied = StepPlan((Work("b", 0, [5], 4, [0, 1], None),), copies=((1, 9),))
    small.run(copied)
    got = small.logits([Work("a", 0, tokens[7:], 7, [0, 9, 10], None)])
    torch.testing.assert_close(got, expected)


def test_a_copied_block_leaves_its_source_alone(small: ModelRunner) -> None:
    tokens = prompt(6)
    small.run(StepPlan((whole(tokens, [0, 1]),)))
    small.run(StepPlan((Work("b", 0, [9], 6, [0, 3], None),), copies=((1, 3),)))
    expected = small.logits([whole([*tokens, 8], [4, 5])])[-1]
    got = small.logits([Work("a", 0, [8], 6, [0, 1], None)])[-1]
    torch.testing.assert_close(got, expected)


def test_choices_of_one_prefill(small: ModelRunner) -> None:
    draw = Draw(setting(seed=3), (0, 1, 2), 0)
    ((*drawn,),) = small.run(StepPlan((whole(prompt(5), [0, 1], draw),))).drawn
    singles = [
        small.run(StepPlan((whole(prompt(5), [0, 1], Draw(setting(seed=3), (choice,), 0)),))).drawn[0][0]
        for choice in range(3)
    ]
    assert drawn == singles


def test_an_empty_plan_gives_an_empty_result(small: ModelRunner) -> None:
    assert small.run(StepPlan(())) == StepResult(())
    assert small.run(StepPlan((), copies=((0, 1),))) == StepResult(())


def test_blocks_beyond_the_length_are_ignored(small: ModelRunner) -> None:
    tokens = prompt(5)
    expected = small.logits([whole(tokens, [0, 1])])
    torch.testing.assert_close(small.logits([whole(tokens, [2, 3, 7, 9])]), expected)


def test_garbage_in_other_blocks_is_never_read(small: ModelRunner) -> None:
    works = [whole(prompt(n, seed=n), [n, n + 20], drawing()) for n in (5, 7, 8)]
    expected = small.run(StepPlan(tuple(works)))
    small.kv.pool.fill_(float("nan"))
    assert small.run(StepPlan(tuple(works))) == expected
    decode = [Work("a", 0, [4], len(work.tokens), [*work.blocks, 39], drawing(1)) for work in works]
    assert all(drawn for drawn in small.run(StepPlan(tuple(decode))).drawn)
    assert torch.isfinite(small.logits(decode)).all()


def test_it_says_what_it_is(small: ModelRunner, runner: ModelRunner) -> None:
    assert small.kv.blocks == 40
    assert small.eos_token_ids == (2, 0)
    assert runner.config.context_length == 8192
    assert len(runner.weights_digest) == 64


def test_a_size_in_bytes_holds_whole_blocks(path: Path) -> None:
    one = ModelRunner(path, blocks=1).kv.block_nbytes
    assert ModelRunner(path, kv_bytes=5 * one + one - 1).kv.blocks == 5


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"blocks": 1, "dtype": "float16"}, "dtype is float32 or bfloat16 on cpu, not 'float16'"),
        ({"blocks": 1, "device": "tpu"}, "device is cpu, cuda"),
        ({"blocks": 1, "kv_dtype": "int4"}, "kv_dtype is auto, float8_e4m3fn or float8_e5m2"),
        ({"blocks": 1, "kv_dtype": "float8_e5m2"}, "needs a GPU: leave it auto"),
        ({"blocks": 1, "kv_bytes": 1}, "not both"),
        ({}, "not both"),
        ({"kv_bytes": 10}, "holds no block"),
        ({"blocks": 0}, "holds no block"),
    ],
    ids=str,
)
def test_wrong_arguments_are_named(path: Path, changes: dict[str, object], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        ModelRunner(path, **changes)  # type: ignore[arg-type]


def test_a_cache_larger_than_memory_is_refused(path: Path) -> None:
    with pytest.raises(SetupError, match="does not fit"):
        ModelRunner(path, kv_bytes=2**60)


@pytest.mark.parametrize("kind", ["float8_e4m3fn", "float8_e5m2"])
def test_float8_kv_holds_twice_the_tokens_and_changes_little(
    path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the plain definitions, which the GPU's kernels are held to."""
    whole_numbers = ModelRunner(path, dtype="bfloat16", blocks=20, use_compiled=False)
    monkeypatch.setattr(dispatch, "choose", dispatch.plain)
    narrow = ModelRunner(path, dtype="bfloat16", kv_dtype=kind, blocks=20, use_compiled=False)
    assert narrow.kv.block_nbytes * 2 == whole_numbers.kv.block_nbytes
    assert (narrow.numbers, narrow.kv.layout.dtype) == ("bfloat16", kind)
    works = [whole(prompt(30), list(range(2)))]
    expected, got = whole_numbers.logits(works).float(), narrow.logits(works).float()
    change = float((got - expected).norm() / expected.norm())
    assert 1e-3 < change < 0.2

    moved = bytearray(2 * narrow.kv.block_nbytes)
    narrow.kv.gather([1, 0], memoryview(moved))
    narrow.kv.scatter([7, 5], memoryview(moved))
    bits = narrow.kv.pool.view(torch.uint8)
    assert torch.equal(bits[:, :, [7, 5]], bits[:, :, [1, 0]])
    assert int(bits[:, :, 7].count_nonzero()) > 0
