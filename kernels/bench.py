"""How fast the GPU kernels are, each beside what it can be held against: copied bytes, or torch's attention.

Sizes are those of a Llama-3.1-8B: 32 query heads and 8 KV heads of 128, hidden 4,096, width 14,336. Which
functions are timed, and how, is handed in: so the cases can be tried with the definitions where no GPU is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel

Timer = Callable[[Callable[[], object]], tuple[float, float, float]]
"""Runs a piece of work many times: median, lowest and highest of its seconds."""


@dataclass(frozen=True, slots=True)
class KernelTime:
    """One kernel at one size, in seconds. `moved` bytes and `operations` are what it must do at least.

    `rival` is the median of torch's fastest way to the same result, where there is one.
    """

    name: str
    case: str
    median: float
    low: float
    high: float
    moved: int
    operations: int = 0
    rival: float | None = None


@dataclass(frozen=True, slots=True)
class Sizes:
    """How large the cases are. `copied` is in bytes, `batches` are (sequences, positions of each)."""

    copied: int = 2**32
    batches: tuple[tuple[int, int], ...] = ((1, 4096), (16, 4096), (64, 4096), (128, 1024))
    prompts: tuple[int, ...] = (4096, 8192, 16384)
    rows: tuple[int, ...] = (64, 2048)
    heads: int = 32
    kv_heads: int = 8
    dim: int = 128
    hidden: int = 4096
    width: int = 14336
    vocabulary: int = 128256
    block: int = 16
    blocks: int = 256
    layers: int = 32
    tuned: tuple[tuple[int, int], int] = ((64, 4096), 8192)
    """The decode batch and the prompt at which tiles are compared."""


def triton_kernels() -> SimpleNamespace:
    """The Triton kernels under the names of `kernels.reference`."""
    from kernels import activation, kv_copy, norm, paged_attention, prefill_attention, rotary, sampling

    return SimpleNamespace(
        paged_attention=paged_attention.paged_attention,
        prefill_attention=prefill_attention.prefill_attention,
        rms_norm=norm.rms_norm,
        add_rms_norm=norm.add_rms_norm,
        silu_mul=activation.silu_mul,
        rotary_store=rotary.rotary_store,
        gather_blocks=kv_copy.gather_blocks,
        scatter_blocks=kv_copy.scatter_blocks,
        copy_blocks=kv_copy.copy_blocks,
        sample=sampling.sample,
    )


def gpu_timer(work: Callable[[], object]) -> tuple[float, float, float]:
    """By CUDA events, with the caches flushed before each run."""
    from triton.testing import do_bench

    milliseconds: list[float] = do_bench(work, warmup=100, rep=400, quantiles=[0.5, 0.0, 1.0])
    median, low, high = (value / 1e3 for value in milliseconds)
    return median, low, high


class Cases:
    """Inputs of one dtype on one device, drawn from a seeded generator."""

    def __init__(
        self, ops: Any, timer: Timer, sizes: Sizes, device: torch.device, dtype: torch.dtype
    ) -> None:
        self.ops, self.timer, self.sizes = ops, timer, sizes
        self._device, self._dtype = device, dtype
        self._generator = torch.Generator(device).manual_seed(0)

    def normal(self, *shape: int, dtype: torch.dtype | None = None) -> Tensor:
        return torch.randn(shape, generator=self._generator, device=self._device, dtype=dtype or self._dtype)

    def integers(self, values: object, dtype: torch.dtype = torch.int32) -> Tensor:
        return torch.as_tensor(values, dtype=dtype, device=self._device)

    def permutation(self, size: int) -> Tensor:
        return torch.randperm(size, generator=self._generator, device=self._device)

    def time(
        self, name: str, case: str, work: Callable[[], object], moved: int, operations: int = 0
    ) -> KernelTime:
        return KernelTime(name, case, *self.timer(work), moved=moved, operations=operations)

    def cache(self, positions: int) -> tuple[Tensor, Tensor]:
        sizes = self.sizes
        blocks = -(-positions // sizes.block)
        shape = (blocks, sizes.block, sizes.kv_heads, sizes.dim)
        return self.normal(*shape), self.normal(*shape)


def measure(
    ops: Any, timer: Timer, sizes: Sizes, device: torch.device, dtype: torch.dtype
) -> Iterator[KernelTime]:
    """Every kernel of `ops`, which has the functions of `kernels.reference`; a plain copy first."""
    cases = Cases(ops, timer, sizes, device, dtype)
    yield _copy(cases)
    for batch, context in sizes.batches:
        yield _decode(cases, batch, context)
    for tokens in sizes.prompts:
        yield _prefill(cases, tokens)
    for rows in sizes.rows:
        yield from _rowwise(cases, rows)
    yield _sampling(cases, sizes.rows[0])
    yield from _blocks(cases)


def _copy(cases: Cases) -> KernelTime:
    """What the device can move: one large tensor onto another."""
    source = cases.normal(cases.sizes.copied // 2 // cases.normal(1).element_size())
    target = torch.empty_like(source)
    return cases.time("copy", f"{source.nbytes >> 20} MiB", lambda: target.copy_(source), 2 * source.nbytes)


def decode_inputs(
    cases: Cases, batch: int, context: int
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, float]:
    """The arguments of paged_attention: blocks in random order."""
    sizes = cases.sizes
    each = -(-context // sizes.block)
    keys, values = cases.cache(batch * each * sizes.block)
    table = cases.permutation(batch * each).view(batch, each).to(torch.int32)
    lengths = cases.integers([context] * batch)
    q = cases.normal(batch, sizes.heads, sizes.dim)
    return q, keys, values, table, lengths, sizes.dim**-0.5


def decode_costs(sizes: Sizes, batch: int, context: int, width: int) -> tuple[int, int]:
    """Bytes and operations of decode attention; `width` is the bytes of an element."""
    moved = 2 * batch * width * sizes.dim * (context * sizes.kv_heads + sizes.heads)
    return moved, 4 * batch * context * sizes.heads * sizes.dim


def prefill_inputs(cases: Cases, tokens: int) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, float]:
    """The arguments of prefill_attention: one prompt, nothing cached."""
    sizes = cases.sizes
    keys, values = cases.cache(tokens)
    table = cases.permutation(len(keys)).view(1, -1).to(torch.int32)
    starts, lengths = cases.integers([0, tokens]), cases.integers([tokens])
    q = cases.normal(tokens, sizes.heads, sizes.dim)
    return q, keys, values, table, starts, lengths, sizes.dim**-0.5


def prefill_costs(sizes: Sizes, tokens: int, width: int) -> tuple[int, int]:
    """Bytes and operations of causal prefill attention: half of the square is masked."""
    moved = 2 * tokens * (sizes.heads + sizes.kv_heads) * sizes.dim * width
    return moved, 2 * tokens * (tokens + 1) * sizes.heads * sizes.dim


def _decode(cases: Cases, batch: int, context: int) -> KernelTime:
    arguments = decode_inputs(cases, batch, context)
    costs = decode_costs(cases.sizes, batch, context, arguments[0].element_size())
    return cases.time(
        "decode attention", f"{batch} × {context}", lambda: cases.ops.paged_attention(*arguments), *costs
    )


def _prefill(cases: Cases, tokens: int) -> KernelTime:
    arguments = prefill_inputs(cases, tokens)
    costs = prefill_costs(cases.sizes, tokens, arguments[0].element_size())
    found = cases.time(
        "prefill attention", str(tokens), lambda: cases.ops.prefill_attention(*arguments), *costs
    )
    return replace(found, rival=_torch_attention(cases, tokens))


def _torch_attention(cases: Cases, tokens: int) -> float | None:
    """The median of torch's fastest causal attention over contiguous keys and values of all heads.

    They are repeated beforehand, outside what is timed: not every one of torch's ways takes grouped heads.
    """
    sizes = cases.sizes
    q, k, v = (cases.normal(1, sizes.heads, tokens, sizes.dim) for _ in range(3))
    medians = []
    for backend in (SDPBackend.CUDNN_ATTENTION, SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION):
        try:
            with sdpa_kernel(backend):
                medians.append(
                    cases.timer(lambda: functional.scaled_dot_product_attention(q, k, v, is_causal=True))[0]
                )
        except RuntimeError:
            continue  # not built for this device or dtype
    return min(medians, default=None)


def _rowwise(cases: Cases, rows: int) -> Iterator[KernelTime]:
    sizes, ops = cases.sizes, cases.ops
    x, residual = cases.normal(rows, sizes.hidden), cases.normal(rows, sizes.hidden)
    weight = cases.normal(sizes.hidden)
    yield cases.time("RMSNorm", f"{rows} rows", lambda: ops.rms_norm(x, weight, 1e-5), 2 * x.nbytes)
    yield cases.time(
        "residual + RMSNorm",
        f"{rows} rows",
        lambda: ops.add_rms_norm(x, residual, weight, 1e-5),
        4 * x.nbytes,
    )
    gate_up = cases.normal(rows, 2 * sizes.width)
    yield cases.time("SiLU · mul", f"{rows} rows", lambda: ops.silu_mul(gate_up), gate_up.nbytes * 3 // 2)
    qkv = cases.normal(rows, sizes.heads + 2 * sizes.kv_heads, sizes.dim)
    q, k, v = qkv.split((sizes.heads, sizes.kv_heads, sizes.kv_heads), dim=1)
    angles = cases.normal(rows, sizes.dim // 2, dtype=torch.float32)
    cos, sin = angles.cos(), angles.sin()
    keys, values = cases.cache(rows)
    slots = cases.permutation(rows)
    yield cases.time(
        "rotary + KV write",
        f"{rows} rows",
        lambda: ops.rotary_store(q, k, v, cos, sin, keys, values, slots),
        2 * qkv.nbytes + cos.nbytes + sin.nbytes,
    )


def _sampling(cases: Cases, rows: int) -> KernelTime:
    size = cases.sizes.vocabulary
    logits = cases.normal(rows, size, dtype=torch.float32)
    ones = torch.ones(rows, dtype=torch.float32, device=logits.device)
    most = cases.integers([50] * rows, torch.int64)
    keys = cases.integers([[row, row + 1] for row in range(rows)], torch.int64)
    return cases.time(
        "sampling, top-k 50, top-p 0.9",
        f"{rows} × {size}",
        lambda: cases.ops.sample(logits, 0.8 * ones, most, 0.9 * ones, 0.0 * ones, keys),
        logits.nbytes,
    )


def _blocks(cases: Cases) -> Iterator[KernelTime]:
    sizes, ops = cases.sizes, cases.ops
    block = (sizes.block, sizes.kv_heads, sizes.dim)
    pool = cases.normal(sizes.layers, 2, 2 * sizes.blocks, *block)
    staging = torch.empty((sizes.blocks, sizes.layers, 2, *block), dtype=pool.dtype, device=pool.device)
    chosen = cases.permutation(2 * sizes.blocks)
    sources, targets = chosen[: sizes.blocks], chosen[sizes.blocks :]
    case, moved = f"{sizes.blocks} blocks", 2 * staging.nbytes
    yield cases.time("gather blocks", case, lambda: ops.gather_blocks(pool, sources, staging), moved)
    yield cases.time("scatter blocks", case, lambda: ops.scatter_blocks(pool, sources, staging), moved)
    yield cases.time("copy blocks", case, lambda: ops.copy_blocks(pool, sources, targets), moved)
