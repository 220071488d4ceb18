"""The CPU path computes what the definitions say."""

from __future__ import annotations

import random

import pytest
import torch
from torch import Tensor

from kernels import cpu_attention, dispatch, reference
from tests.kernels.steps import random_step

CPU = dispatch.choose(torch.device("cpu"))
PLAIN = dispatch.plain(torch.device("cpu"))
# bfloat16: scores are rounded to 8 bits before the softmax.
TOLERANCES = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 3e-2}
STEPS = {
    "one-decode": ([1], [1]),
    "decodes-of-one-length": ([1] * 5, [48] * 5),
    "decodes-in-groups": ([1] * 6, [1, 900, 17, 16, 880, 300]),
    "one-chunk": ([70], [70]),
    "chunk-with-prefix": ([64], [161]),
    "chunk-of-two-tiles-and-a-rest": ([130], [150]),
    "chunks-and-decodes": ([3, 65, 2, 1, 1, 1], [3, 100, 50, 600, 5, 16]),
}


def normal(*shape: int, dtype: torch.dtype = torch.float64, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)


def same(ours: Tensor, theirs: Tensor) -> None:
    assert ours.dtype == theirs.dtype
    tolerance = TOLERANCES[theirs.dtype]
    torch.testing.assert_close(ours, theirs, atol=tolerance, rtol=tolerance, check_stride=False)


@pytest.mark.parametrize("dtype", TOLERANCES, ids=str)
@pytest.mark.parametrize("name", STEPS)
def test_attention(name: str, dtype: torch.dtype) -> None:
    step = random_step(*STEPS[name], dtype=dtype)
    got, expected = (
        kernels.attention(step.spans, 3, step.scale, None)(step.q, step.keys, step.values)
        for kernels in (CPU, PLAIN)
    )
    same(got, expected)


@pytest.mark.parametrize(("heads", "kv_heads", "block"), [(9, 3, 1), (4, 4, 8), (6, 1, 32)])
def test_attention_of_other_shapes(heads: int, kv_heads: int, block: int) -> None:
    step = random_step(*STEPS["chunks-and-decodes"], heads=heads, kv_heads=kv_heads, block=block)
    got, expected = (
        kernels.attention(step.spans, kv_heads, step.scale, None)(step.q, step.keys, step.values)
        for kernels in (CPU, PLAIN)
    )
    same(got, expected)


def test_attention_with_a_mask() -> None:
    step = random_step([70, 4, 1], [90, 20, 33])
    mask = torch.rand(74, 90, generator=torch.Generator().manual_seed(3)) < 0.5
    mask[:, 0] = True
    got, expected = (
        kernels.attention(step.spans, 3, step.scale, mask)(step.q, step.keys, step.values)
        for kernels in (CPU, PLAIN)
    )
    same(got, expected)


def test_buffers_serve_steps_of_any_size_and_dtype() -> None:
    for length, dtype in (
        (300, torch.float32),
        (20, torch.float64),
        (500, torch.float64),
        (9, torch.float32),
    ):
        step = random_step([1], [length], dtype=dtype)
        got, expected = (
            kernels.attention(step.spans, 3, step.scale, None)(step.q, step.keys, step.values)
            for kernels in (CPU, PLAIN)
        )
        same(got, expected)


def test_groups_hold_every_sequence_once_with_little_padding() -> None:
    rng = random.Random(5)
    for _ in range(50):
        lengths = [rng.randrange(1, 3000) for _ in range(rng.randrange(1, 40))]
        groups = cpu_attention.group_by_length(lengths)
        assert sorted(index for group in groups for index in group) == list(range(len(lengths)))
        for group in groups:
            longest = max(lengths[index] for index in group)
            padding = sum(longest - lengths[index] for index in group)
            assert padding <= max(256, longest * len(group) // 8)


@pytest.mark.parametrize("dtype", TOLERANCES, ids=str)
@pytest.mark.parametrize("rows", [1, 2, 4, 5, 33])
@pytest.mark.parametrize("biased", [False, True])
def test_linear(rows: int, biased: bool, dtype: torch.dtype) -> None:
    x, weight = normal(rows, 31, dtype=dtype), normal(19, 31, dtype=dtype, seed=1)
    bias = normal(19, dtype=dtype, seed=2) if biased else None
    got = CPU.linear(x, weight, bias)
    assert got.is_contiguous()
    wide = (x.double() @ weight.double().t()) + (0 if bias is None else bias.double())
    same(got, wide.to(dtype))


@pytest.mark.parametrize("dtype", TOLERANCES, ids=str)
def test_norms(dtype: torch.dtype) -> None:
    x, weight = normal(3, 5, 24, dtype=dtype), normal(24, dtype=dtype)
    same(CPU.rms_norm(x[:, 1:4], weight, 1e-5), reference.rms_norm(x[:, 1:4], weight, 1e-5))
    ours, theirs = normal(7, 24, dtype=dtype, seed=1), normal(7, 24, dtype=dtype, seed=1)
    change = normal(7, 24, dtype=dtype, seed=2)
    got, expected = (
        CPU.add_rms_norm(change, ours, weight, 0.1),
        PLAIN.add_rms_norm(change, theirs, weight, 0.1),
    )
    same(got, expected)
    same(ours, theirs)


@pytest.mark.parametrize("dtype", TOLERANCES, ids=str)
def test_silu_mul(dtype: torch.dtype) -> None:
    same(CPU.silu_mul(normal(5, 38, dtype=dtype)), reference.silu_mul(normal(5, 38, dtype=dtype)))


@pytest.mark.parametrize("dtype", TOLERANCES, ids=str)
@pytest.mark.parametrize("fused", [True, False], ids=["slices-of-one-projection", "separate"])
def test_rotary_store(fused: bool, dtype: torch.dtype) -> None:
    q, k, v = normal(5, 9 + 3 + 3, 12, dtype=dtype).split((9, 3, 3), dim=1)
    if not fused:
        q, k = q.clone(), k.clone()
    angles = normal(5, 6, dtype=torch.float32)
    slots = torch.tensor([40, 3, 17, 0, 63])
    caches = [torch.zeros(2, 8, 8, 3, 12, dtype=dtype) for _ in range(2)]
    got, expected = (
        kernels.rotary_store(q, k, v, angles.cos(), angles.sin(), cache[0], cache[1], slots)
        for kernels, cache in zip((CPU, PLAIN), caches, strict=True)
    )
    same(got, expected)
    assert got.is_contiguous()
    same(caches[0], caches[1])


def test_blocks_are_moved_whole() -> None:
    pool = normal(3, 2, 7, 4, 2, 6)
    for blocks in ([2], [6, 0, 3]):
        index = torch.tensor(blocks)
        outs = [torch.empty(len(blocks), 3, 2, 4, 2, 6, dtype=torch.float64) for _ in range(2)]
        CPU.gather_blocks(pool, index, outs[0])
        PLAIN.gather_blocks(pool, index, outs[1])
        assert torch.equal(outs[0], outs[1])
        pools = [normal(3, 2, 7, 4, 2, 6, seed=1) for _ in range(2)]
        CPU.scatter_blocks(pools[0], index, outs[0])
        PLAIN.scatter_blocks(pools[1], index, outs[0])
        assert torch.equal(pools[0], pools[1])


def test_copies_read_before_they_write() -> None:
    pools = [normal(2, 2, 6, 4, 2, 6) for _ in range(2)]
    sources, targets = torch.tensor([0, 1, 2]), torch.tensor([1, 2, 5])
    CPU.copy_blocks(pools[0], sources, targets)
    PLAIN.copy_blocks(pools[1], sources, targets)
    assert torch.equal(pools[0], pools[1])
    assert torch.equal(pools[0][:, :, 2], normal(2, 2, 6, 4, 2, 6)[:, :, 1])
