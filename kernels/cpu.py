"""The kernels for one CPU thread, composed of few large torch operations.

At batch sizes of a small server an operation's fixed cost (2–5 µs) and the page faults of fresh large
buffers cost more than arithmetic: so operations are few, and gathered keys and values land in buffers that
are kept. `kernels.reference` defines what each function computes, shapes and all.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

_ONEDNN = torch.backends.mkldnn.is_available()


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x [rows, inputs] · weight [outputs, inputs] ᵀ + bias.

    torch gives bfloat16 to oneDNN, float32 to its BLAS. oneDNN takes 0.4 to 0.7 of the BLAS's time on float32
    too, measured from 1 to 512 rows on AVX-512, through the operation that torch's own compiler emits.
    """
    if _ONEDNN and x.dtype == torch.float32:
        out: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
        return out
    return functional.linear(x, weight, bias)


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    return functional.rms_norm(x, weight.shape, weight, eps)


def add_rms_norm(x: Tensor, residual: Tensor, weight: Tensor, eps: float) -> Tensor:
    residual.add_(x)
    return functional.rms_norm(residual, weight.shape, weight, eps)


def silu_mul(gate_up: Tensor) -> Tensor:
    gate, up = gate_up.chunk(2, dim=-1)
    return functional.silu(gate).mul_(up)


def rotary_store(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cos: Tensor,
    sin: Tensor,
    keys: Tensor,
    values: Tensor,
    slots: Tensor,
) -> Tensor:
    tokens, heads, dim = q.shape
    kv_heads = k.shape[1]
    cos, sin = cos.unsqueeze(1).to(q.dtype), sin.unsqueeze(1).to(q.dtype)
    if _adjacent(q, k):
        both = _rotate(q.as_strided((tokens, heads + kv_heads, dim), q.stride()), cos, sin)
        q, k = both[:, :heads], both[:, heads:]
    else:
        q, k = _rotate(q, cos, sin), _rotate(k, cos, sin)
    keys.view(-1, kv_heads, dim).index_copy_(0, slots, k)
    values.view(-1, kv_heads, dim).index_copy_(0, slots, v)
    return q.contiguous()


def _adjacent(q: Tensor, k: Tensor) -> bool:
    """Whether k's heads follow q's in the rows of one projection, so that both turn as one tensor."""
    same = q.untyped_storage().data_ptr() == k.untyped_storage().data_ptr() and q.stride() == k.stride()
    return same and k.storage_offset() == q.storage_offset() + q.shape[1] * q.shape[2]


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    first, second = x.chunk(2, dim=-1)
    out = torch.empty(x.shape, dtype=x.dtype)
    low, high = out.chunk(2, dim=-1)
    torch.mul(first, cos, out=low).addcmul_(second, sin, value=-1)
    torch.mul(second, cos, out=high).addcmul_(first, sin)
    return out


def gather_blocks(pool: Tensor, blocks: Tensor, out: Tensor) -> None:
    rows = _block_rows(pool, blocks)
    torch.index_select(_flat(pool), 0, rows, out=out.view(len(rows), -1))


def scatter_blocks(pool: Tensor, blocks: Tensor, data: Tensor) -> None:
    rows = _block_rows(pool, blocks)
    _flat(pool).index_copy_(0, rows, data.view(len(rows), -1))


def copy_blocks(pool: Tensor, sources: Tensor, targets: Tensor) -> None:
    flat = _flat(pool)
    flat.index_copy_(0, _block_rows(pool, targets), flat.index_select(0, _block_rows(pool, sources)))


def _flat(pool: Tensor) -> Tensor:
    """[layers · 2 · blocks, block_size · kv_heads · dim]: a block of one layer's keys or values is a row."""
    layers, two, blocks = pool.shape[:3]
    return pool.view(layers * two * blocks, -1)


def _block_rows(pool: Tensor, blocks: Tensor) -> Tensor:
    """The rows of _flat that hold the given blocks, block by block: int64, flat."""
    layers, two, count = pool.shape[:3]
    return (blocks[:, None] + torch.arange(0, layers * two * count, count)).flatten()
