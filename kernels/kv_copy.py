"""Whole KV blocks in and out of the pool: staging for transfers and swap, copy-on-write."""

# A kernel's arguments are pointers and scalars of the device: they have no Python types.
# mypy: allow-untyped-defs, allow-incomplete-defs

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

_TILE = 2048
_WORDS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


@triton.jit
def _move_blocks(
    pool_ptr, blocks_ptr, staging_ptr, pool_plane, elements, TILE: tl.constexpr, GATHER: tl.constexpr
):
    """Grid (n, layers · 2, cdiv(elements, TILE)); elements: of one block in one plane, contiguous."""
    index = tl.program_id(0).to(tl.int64)
    plane = tl.program_id(1).to(tl.int64)
    offsets = tl.program_id(2) * TILE + tl.arange(0, TILE)
    inside = offsets < elements
    block = tl.load(blocks_ptr + index)
    pooled = pool_ptr + plane * pool_plane + block * elements + offsets
    staged = staging_ptr + (index * tl.num_programs(1) + plane) * elements + offsets
    if GATHER:
        tl.store(staged, tl.load(pooled, mask=inside), mask=inside)
    else:
        tl.store(pooled, tl.load(staged, mask=inside), mask=inside)


def _launch(pool: Tensor, blocks: Tensor, staging: Tensor, gather: bool) -> None:
    layers, two, total = pool.shape[:3]
    elements = pool.stride(2)
    count = blocks.shape[0]
    if count:
        # Bits are moved, never converted: words of the elements' size serve every storage type.
        words = _WORDS[pool.element_size()]
        _move_blocks[(count, layers * two, triton.cdiv(elements, _TILE))](
            pool.view(words), blocks, staging.view(words), total * elements, elements,
            TILE=_TILE, GATHER=gather, num_warps=4,
        )  # fmt: skip


def gather_blocks(pool: Tensor, blocks: Tensor, out: Tensor) -> None:
    """Copy blocks out of the pool, block by block.

    pool: [layers, 2, blocks, block_size, kv_heads, dim], contiguous; blocks: [n] int64, contiguous;
    out: [n, layers, 2, block_size, kv_heads, dim], contiguous, of the pool's dtype, written in place.
    Grid: (n, layers · 2, cdiv(block_size · kv_heads · dim, 2048)).
    """
    _launch(pool, blocks, out, gather=True)


def scatter_blocks(pool: Tensor, blocks: Tensor, data: Tensor) -> None:
    """The inverse of gather_blocks: write data [n, layers, 2, …], contiguous, into distinct blocks."""
    _launch(pool, blocks, data, gather=False)


def copy_blocks(pool: Tensor, sources: Tensor, targets: Tensor) -> None:
    """Copy whole blocks within the pool, all layers, keys and values.

    sources, targets: [n] int64, contiguous. All sources are read before any target is written, through
    a staging buffer of n blocks, because a target may be another pair's source; targets are distinct.
    """
    staging = pool.new_empty((sources.shape[0], *pool.shape[:2], *pool.shape[3:]))
    gather_blocks(pool, sources, staging)
    scatter_blocks(pool, targets, staging)
