"""On a real GPU: every kernel agrees with its definition, and the embedded model's tokens with the CPU's."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from engine.plan import Draw, StepPlan, Work
from engine.request import Sampling
from model.runner import ModelRunner
from tests.kernels import cases
from tests.kernels.shapes import ATTENTION, CASES, FULL, ROTARY

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")

BLOCK = 16
BLOCKS = 64
TOP_TWO_GAP = 1e-4
TOKENS = 48
PROMPTS = (
    (1, 504, 3575, 282, 4649, 314),
    (
        28,
        9690,
        198,
        2683,
        359,
        253,
        5356,
        5646,
        11173,
        3365,
        3511,
        308,
        34519,
        28,
        7018,
        411,
        407,
        19712,
        8182,
    ),
    tuple(range(900, 1013)),
)
LLAMA = {**ATTENTION, "dtype": "bfloat16", "dim": 128, "heads": 32, "kv_heads": 8}
BIG: dict[str, tuple[str, dict[str, Any]]] = {
    "decode-batch": ("paged_attention", {**LLAMA, "lengths": [777] * 33}),
    "decode-long": ("paged_attention", {**LLAMA, "heads": 16, "kv_heads": 2, "lengths": [9001, 3]}),
    "prefill-long": ("prefill_attention", {**LLAMA, "counts": [1500, 9], "lengths": [3001, 9]}),
    "prefill-odd-ends": (
        "prefill_attention",
        {**LLAMA, "counts": [33, 0, 70, 1], "lengths": [33, 5, 161, 700]},
    ),
    "prefill-tiles-end": ("prefill_attention", {**LLAMA, "counts": [128, 64], "lengths": [128, 256]}),
    "prefill-fp16": (
        "prefill_attention",
        {**LLAMA, "dtype": "float16", "counts": [129, 40], "lengths": [400, 40]},
    ),
    "prefill-groups-of-3": (
        "prefill_attention",
        {**LLAMA, "heads": 9, "kv_heads": 3, "dim": 64, "counts": [200, 3], "lengths": [333, 3]},
    ),
    "prefill-one-kv-head": (
        "prefill_attention",
        {**LLAMA, "heads": 9, "kv_heads": 1, "counts": [90], "lengths": [101]},
    ),
    "prefill-no-groups": (
        "prefill_attention",
        {**LLAMA, "heads": 4, "kv_heads": 4, "dim": 64, "counts": [511, 1], "lengths": [512, 128]},
    ),
    **{
        f"prefill-blocks-of-{block}": (
            "prefill_attention", {**LLAMA, "block": block, "counts": [150], "lengths": [257]},
        )
        for block in (8, 32, 64, 128)
    },
    "rotary-e4m3": ("rotary_store", {**ROTARY, "dtype": "bfloat16", "storage": "float8_e4m3fn"}),
    "sample-vocabulary": ("sample", {"rows": 64, "vocabulary": 151936}),
    "sample-top-p": ("sample", {"rows": 64, "vocabulary": 49152, "only": "top_p"}),
}  # fmt: skip
SHAPES = {**CASES, **BIG}
NEEDS_E4M3 = [
    name for name, (_, arguments) in SHAPES.items() if "e4m3" in str(arguments) and "copy" not in name
]


@pytest.fixture(scope="module")
def runners() -> tuple[ModelRunner, ModelRunner]:
    """The embedded model in float32 on the CPU and on the GPU."""
    return ModelRunner(blocks=BLOCKS), ModelRunner(blocks=BLOCKS, device="cuda")


@pytest.mark.parametrize("name", SHAPES)
def test_a_kernel_agrees_with_its_definition(name: str) -> None:
    if name in NEEDS_E4M3 and torch.cuda.get_device_capability() < (8, 9):
        pytest.skip("e4m3 needs compute capability 8.9")
    case, arguments = SHAPES[name]
    # The number of splits that a case names is the interpreter's.
    arguments = {key: value for key, value in arguments.items() if key != "splits"}
    getattr(cases, case)(device="cuda", **arguments)


def test_every_combination_agrees_with_its_definition(full: bool) -> None:
    for name, (case, arguments) in FULL.items() if full else list(FULL.items())[::9]:
        try:
            getattr(cases, case)(device="cuda", **arguments)
        except AssertionError as error:
            raise AssertionError(name) from error


def decode(runner: ModelRunner, prompt: tuple[int, ...]) -> list[int]:
    """Greedy tokens: a chunk, the rest of the prompt, then one at a time, in blocks that are not in order."""
    blocks = [*range(BLOCKS - 1, -1, -2)]
    sampling = Sampling(max_tokens=TOKENS, temperature=0.0)
    output: list[int] = []
    half = len(prompt) // 2
    runner.run(StepPlan((Work("r", 0, prompt[:half], 0, blocks),)))
    tokens, start = prompt[half:], half
    while len(output) < TOKENS:
        work = Work("r", 0, tokens, start, blocks, Draw(sampling, (0,), len(output)))
        token = runner.run(StepPlan((work,))).drawn[0][0].token
        start += len(tokens)
        tokens = (token,)
        output.append(token)
    return output


@pytest.mark.parametrize("prompt", PROMPTS, ids=["words", "numbers", "long"])
def test_greedy_tokens_equal_those_of_the_cpu(
    prompt: tuple[int, ...], runners: tuple[ModelRunner, ModelRunner]
) -> None:
    cpu, gpu = runners
    expected, got = decode(cpu, prompt), decode(gpu, prompt)
    if got == expected:
        return
    first = next(i for i, (a, b) in enumerate(zip(expected, got, strict=True)) if a != b)
    known = (*prompt, *expected[:first])
    logits = cpu.logits([Work("r", 0, known, 0, [*range(BLOCKS)])])[-1]
    top = logits.topk(2).values
    assert top[0] - top[1] < TOP_TWO_GAP, f"token {first} differs: {expected[first]} and {got[first]}"


def test_sampled_tokens_equal_those_of_the_cpu(runners: tuple[ModelRunner, ModelRunner]) -> None:
    """64 choices of one prompt, drawn with all filters; a few may fall on a token's edge."""
    sampling = Sampling(max_tokens=1, temperature=0.9, top_k=200, top_p=0.95, min_p=0.001, seed=17)
    draw = Draw(sampling, tuple(range(64)), 0)
    plan = StepPlan((Work("r", 0, PROMPTS[0], 0, [*range(BLOCKS)], draw),))
    ours, theirs = ([drawn.token for drawn in runner.run(plan).drawn[0]] for runner in runners)
    assert len(set(theirs)) > 5
    assert sum(a != b for a, b in zip(ours, theirs, strict=True)) <= 1
