"""The launches of which every variant must compile within its budgets: name -> a call of the launcher."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from kernels import activation, kv_copy, norm, paged_attention, prefill_attention, rotary, sampling

Call = Callable[[], object]

E4M3, E5M2 = torch.float8_e4m3fn, torch.float8_e5m2
FLOAT32, BFLOAT16, FLOAT16 = torch.float32, torch.bfloat16, torch.float16


def zeros(*shape: int, dtype: torch.dtype = torch.bfloat16) -> Tensor:
    return torch.zeros(*shape, dtype=dtype)


def decode(
    heads: int, kv_heads: int, dim: int, dtype: torch.dtype = BFLOAT16,
    storage: torch.dtype | None = None, batch: int = 2,
) -> object:  # fmt: skip
    """2 sequences are split and combined, 128 are not."""
    cache = zeros(4, 16, kv_heads, dim, dtype=storage or dtype)
    table, lengths = zeros(batch, 256, dtype=torch.int32), zeros(batch, dtype=torch.int32)
    return paged_attention.paged_attention(
        zeros(batch, heads, dim, dtype=dtype), cache, cache, table, lengths, 0.125
    )


def prefill(
    heads: int, kv_heads: int, dim: int, dtype: torch.dtype = BFLOAT16,
    storage: torch.dtype | None = None, tokens: int = 64, masked: bool = False, block: int = 16,
) -> object:  # fmt: skip
    """64 tokens are a long chunk, 4 short ones: their tiles differ, and on Hopper the kernel."""
    cache = zeros(4, block, kv_heads, dim, dtype=storage or dtype)
    table, lengths = zeros(2, 256, dtype=torch.int32), zeros(2, dtype=torch.int32)
    starts = zeros(3, dtype=torch.int32)
    mask = zeros(tokens, 64, dtype=torch.bool) if masked else None
    q = zeros(tokens, heads, dim, dtype=dtype)
    return prefill_attention.prefill_attention(q, cache, cache, table, starts, lengths, 0.125, mask)


def turn(
    heads: int, kv_heads: int, dim: int, dtype: torch.dtype, storage: torch.dtype | None = None
) -> object:
    q, k, v = zeros(5, heads + 2 * kv_heads, dim, dtype=dtype).split([heads, kv_heads, kv_heads], dim=1)
    angles, slots = zeros(5, dim // 2, dtype=torch.float32), zeros(5, dtype=torch.int64)
    cache = zeros(4, 16, kv_heads, dim, dtype=storage or dtype)
    return rotary.rotary_store(q, k, v, angles, angles, cache, cache, slots)


def residual(hidden: int, dtype: torch.dtype = BFLOAT16) -> object:
    x = zeros(4, hidden, dtype=dtype)
    return norm.add_rms_norm(x, x, zeros(hidden, dtype=dtype), 1e-5)


def head_norm(dtype: torch.dtype = BFLOAT16) -> object:
    return norm.rms_norm(zeros(64, 40, 128, dtype=dtype)[:, :32], zeros(128, dtype=dtype), 1e-6)


def gate(width: int, dtype: torch.dtype = BFLOAT16) -> object:
    return activation.silu_mul(zeros(4, 2 * width, dtype=dtype))


def copy(dtype: torch.dtype) -> object:
    pair = zeros(2, dtype=torch.int64)
    return kv_copy.copy_blocks(zeros(2, 2, 8, 16, 8, 128, dtype=dtype), pair, pair)


def draw(vocabulary: int) -> object:
    numbers = zeros(4, dtype=torch.float32)
    top_k = zeros(4, dtype=torch.int64)
    logits = zeros(4, vocabulary, dtype=torch.float32)
    keys = zeros(4, 2, dtype=torch.int64)
    return sampling.sample(logits, numbers, top_k, numbers, numbers, keys)


LAUNCHES: dict[str, Call] = {
    "decode-128": lambda: decode(32, 8, 128),
    "decode-128-batch-128": lambda: decode(32, 8, 128, batch=128),
    "decode-64": lambda: decode(9, 3, 64),
    "decode-256": lambda: decode(8, 2, 256),
    "decode-80": lambda: decode(32, 32, 80),
    "decode-96-fp16": lambda: decode(16, 8, 96, FLOAT16),
    "decode-128-e5m2": lambda: decode(32, 8, 128, BFLOAT16, E5M2),
    "decode-64-float32": lambda: decode(9, 3, 64, FLOAT32),
    "prefill-128": lambda: prefill(32, 8, 128),
    "prefill-64": lambda: prefill(9, 3, 64),
    "prefill-256": lambda: prefill(8, 2, 256),
    "prefill-128-short": lambda: prefill(32, 8, 128, tokens=4),
    "prefill-128-masked": lambda: prefill(32, 8, 128, masked=True),
    "prefill-128-e5m2": lambda: prefill(32, 8, 128, BFLOAT16, E5M2),
    "prefill-128-fp16": lambda: prefill(32, 8, 128, FLOAT16),
    "prefill-80-float32": lambda: prefill(32, 32, 80, FLOAT32),
    "rotary-128": lambda: turn(32, 8, 128, BFLOAT16),
    "rotary-128-e5m2": lambda: turn(32, 8, 128, BFLOAT16, E5M2),
    "rotary-80-mha": lambda: turn(32, 32, 80, BFLOAT16),
    "rotary-64-float32": lambda: turn(9, 3, 64, FLOAT32),
    "residual-4096": lambda: residual(4096),
    "residual-16384": lambda: residual(16384),
    "head-norm": head_norm,
    "silu": lambda: gate(14336),
    "copy": lambda: copy(BFLOAT16),
    "sample-152k": lambda: draw(151936),
}
ONLY_SM90: dict[str, Call] = {
    "decode-128-e4m3": lambda: decode(32, 8, 128, BFLOAT16, E4M3),
    "prefill-128-e4m3": lambda: prefill(32, 8, 128, BFLOAT16, E4M3),
    "prefill-128-blocks-of-64": lambda: prefill(9, 1, 128, block=64),
    "prefill-64-blocks-of-128": lambda: prefill(4, 4, 64, block=128),
    "prefill-128-not-hopper's": lambda: prefill(32, 8, 128, block=8),
    "rotary-128-e4m3": lambda: turn(32, 8, 128, BFLOAT16, E4M3),
}
SHAPES = ((9, 3, 64), (32, 32, 80), (16, 8, 96), (32, 8, 128), (64, 8, 128), (8, 2, 256))


def tuned() -> Iterator[tuple[str, Call]]:
    """The tiles that are compared on a GPU, in bfloat16 with heads of 128."""
    cache = zeros(4, 16, 8, 128)
    q, scale = zeros(128, 32, 128), 0.125
    table, lengths = zeros(128, 256, dtype=torch.int32), zeros(128, dtype=torch.int32)
    starts = zeros(129, dtype=torch.int32)
    for tile in paged_attention.TILES:
        yield (
            f"decode {tuple(tile)}",
            lambda tile=tile: paged_attention.attend(q, cache, cache, table, lengths, scale, tile),
        )
    for tile in prefill_attention.TILES:
        yield (
            f"prefill {tuple(tile)}",
            lambda tile=tile: prefill_attention.attend(
                q, cache, cache, table, starts, lengths, scale, None, tile
            ),
        )


def every(capability: int) -> Iterator[Call]:
    """Every kernel in every type of activations and storage, at every head size.

    But attention in float32 over float8 with heads of 256: it is right, and spills whatever the tile.
    """
    storages = {80: (None, E5M2), 90: (None, E5M2, E4M3)}[capability]
    for dtype in (BFLOAT16, FLOAT16, FLOAT32):
        for shape in SHAPES:
            for storage in storages:
                yield lambda shape=shape, dtype=dtype, storage=storage: turn(*shape, dtype, storage)
                if dtype is FLOAT32 and storage is not None and shape[2] > 128:
                    continue
                yield lambda shape=shape, dtype=dtype, storage=storage: decode(*shape, dtype, storage)
                for tokens in (4, 64):
                    for masked in (False, True):
                        yield (
                            lambda shape=shape, dtype=dtype, storage=storage, n=tokens, masked=masked: (
                                prefill(*shape, dtype, storage, tokens=n, masked=masked)
                            )
                        )
        for hidden in (576, 4096, 8192, 16384):
            yield lambda hidden=hidden, dtype=dtype: residual(hidden, dtype)
        yield lambda dtype=dtype: head_norm(dtype)
        yield lambda dtype=dtype: gate(14336, dtype)
        yield lambda dtype=dtype: gate(1536, dtype)
    for dtype in (E4M3, BFLOAT16, FLOAT32):
        yield lambda dtype=dtype: copy(dtype)
    for vocabulary in (49152, 128256):
        yield lambda vocabulary=vocabulary: draw(vocabulary)
