"""Rotary embedding of queries and keys fused with the write of keys and values to their slots.

Rotation: Su et al., arXiv 2104.09864, with dimension i paired to i + dim/2.
"""

# A kernel's arguments are pointers and scalars of the device: they have no Python types.
# mypy: allow-untyped-defs, allow-incomplete-defs

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.launch import power_of_two


@triton.jit
def _turn_heads(
    source, target, cos, sin, HEADS: tl.constexpr, HALF: tl.constexpr, source_head, target_head,
    TILE: tl.constexpr, WIDTH: tl.constexpr, TURN: tl.constexpr,
):  # fmt: skip
    """Copy the heads of one token from source to target, rotated if TURN."""
    heads = tl.arange(0, TILE)
    lanes = tl.arange(0, WIDTH)
    held = (heads < HEADS)[:, None] & (lanes < HALF)[None, :]
    source += heads[:, None] * source_head + lanes[None, :]
    target += heads[:, None] * target_head + lanes[None, :]
    low = tl.load(source, mask=held, other=0.0).to(tl.float32)
    high = tl.load(source + HALF, mask=held, other=0.0).to(tl.float32)
    if TURN:
        # Rounded to the activations' type first, so that a cache of fewer bits holds rounded activations.
        kind = source.dtype.element_ty
        turned = (low * cos - high * sin).to(kind).to(tl.float32)
        high = (high * cos + low * sin).to(kind).to(tl.float32)
        low = turned
    tl.store(target, low.to(target.dtype.element_ty), mask=held)
    tl.store(target + HALF, high.to(target.dtype.element_ty), mask=held)


@triton.jit
def _rotary_store(
    q_ptr, k_ptr, v_ptr, cos_ptr, sin_ptr, keys_ptr, values_ptr, slots_ptr, output_ptr,
    q_row, q_head, k_row, k_head, v_row, v_head, cos_row, sin_row,
    keys_block, keys_slot, keys_head, values_block, values_slot, values_head, output_row, output_head,
    HEADS: tl.constexpr, KV_HEADS: tl.constexpr, HALF: tl.constexpr, BLOCK: tl.constexpr,
    QUERY_TILE: tl.constexpr, KV_TILE: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    """Grid (tokens, 2): of a token's two programs one turns its queries, the other writes its KV."""
    token = tl.program_id(0).to(tl.int64)
    lanes = tl.arange(0, WIDTH)
    inside = lanes < HALF
    cos = tl.load(cos_ptr + token * cos_row + lanes, mask=inside, other=0.0).to(tl.float32)[None, :]
    sin = tl.load(sin_ptr + token * sin_row + lanes, mask=inside, other=0.0).to(tl.float32)[None, :]
    if tl.program_id(1) == 0:
        _turn_heads(
            q_ptr + token * q_row, output_ptr + token * output_row, cos, sin,
            HEADS, HALF, q_head, output_head, QUERY_TILE, WIDTH, True,
        )  # fmt: skip
    else:
        slot = tl.load(slots_ptr + token)
        # Rows that pad a captured batch are written nowhere.
        if slot >= 0:
            key = keys_ptr + slot // BLOCK * keys_block + slot % BLOCK * keys_slot
            value = values_ptr + slot // BLOCK * values_block + slot % BLOCK * values_slot
            _turn_heads(
                k_ptr + token * k_row, key, cos, sin,
                KV_HEADS, HALF, k_head, keys_head, KV_TILE, WIDTH, True,
            )  # fmt: skip
            _turn_heads(
                v_ptr + token * v_row, value, cos, sin,
                KV_HEADS, HALF, v_head, values_head, KV_TILE, WIDTH, False,
            )  # fmt: skip


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
    """Rotate q and k by their positions, write k and v to the cache, return the rotated q.

    q: [tokens, heads, dim]; k, v: [tokens, kv_heads, dim], float32, float16 or bfloat16, any strides with
    the last dimension contiguous; cos, sin: [tokens, dim/2] float32, last dimension contiguous;
    keys, values: [blocks, block_size, kv_heads, dim], last dimension contiguous, q's dtype or a float8 one
    (values beyond its range saturate), written in place; slots: [tokens] int64, contiguous, distinct but for
    −1, which writes nowhere.
    Returns a new contiguous [tokens, heads, dim] of q's dtype. Grid: (tokens, 2).
    """
    tokens, heads, dim = q.shape
    kv_heads = k.shape[1]
    output = torch.empty((tokens, heads, dim), dtype=q.dtype, device=q.device)
    if tokens:
        _rotary_store[(tokens, 2)](
            q, k, v, cos, sin, keys, values, slots, output,
            *q.stride()[:2], *k.stride()[:2], *v.stride()[:2], cos.stride(0), sin.stride(0),
            *keys.stride()[:3], *values.stride()[:3], *output.stride()[:2],
            HEADS=heads, KV_HEADS=kv_heads, HALF=dim // 2, BLOCK=keys.shape[1],
            QUERY_TILE=power_of_two(heads), KV_TILE=power_of_two(kv_heads), WIDTH=power_of_two(dim // 2),
            num_warps=4,
        )  # fmt: skip
    return output
