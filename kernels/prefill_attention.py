"""Prefill attention over paged KV: chunks of many sequences, each behind its cached prefix.

A program takes one KV head and a tile of ROWS rows: the query heads of that KV head's group for
ROWS // group consecutive positions of one sequence, so every key is loaded once for the group.

               positions seen ──▶
    tile row   ┌ prefix and earlier tokens ┐┌ the tile's own tokens ┐
    0 … ROWS   │ all visible: no comparison ││ visible up to itself  │

What a row may see is decided in `_visible` alone, where a mask (draft tree, sparse pattern) takes the
place of the causal rule.
"""

# A kernel's arguments are pointers and scalars of the device: they have no Python types.
# mypy: allow-untyped-defs, allow-incomplete-defs

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.launch import LOG2E, Tile, dot_type, power_of_two, properties, register_limit
from kernels.online_softmax import fold_tile


@triton.jit
def _visible(mask_ptr, rows, mask_row, positions, tokens, inside, valid, MASKED: tl.constexpr):
    """Bool [ROWS, TILE]: whether each row of the tile sees each token of its sequence."""
    inside = valid[:, None] & inside[None, :]
    if MASKED:
        seen = tl.load(mask_ptr + rows[:, None] * mask_row + tokens[None, :], mask=inside, other=0)
        return seen != 0
    return inside & (tokens[None, :] <= positions[:, None])


@triton.jit
def _attend_tiles(
    query, best, total, mixed, keys, values, table, mask_ptr,
    first, last, length, rows, positions, valid, scale_log2,
    key_block, key_slot, value_block, value_slot, mask_row,
    DIM: tl.constexpr, WIDTH: tl.constexpr, BLOCK: tl.constexpr, TILE: tl.constexpr,
    COMPARE: tl.constexpr, MASKED: tl.constexpr, TYPE: tl.constexpr,
):  # fmt: skip
    """Fold tokens [first, last) into the running softmax; without COMPARE every row sees all of them."""
    for start in range(first, last, TILE):
        tokens = start + tl.arange(0, TILE)
        inside = tokens < length
        seen = inside[None, :]
        if COMPARE:
            seen = _visible(mask_ptr, rows, mask_row, positions, tokens, inside, valid, MASKED)
        best, total, mixed = fold_tile(
            query, best, total, mixed, keys, values, table, tokens, inside, seen, scale_log2,
            key_block, key_slot, value_block, value_slot, DIM, WIDTH, BLOCK, COMPARE, TYPE,
        )  # fmt: skip
    return best, total, mixed


@triton.jit
def _owner(starts_ptr, sequences, tile, SEQUENCES: tl.constexpr, QUERIES: tl.constexpr):
    """The sequence of a tile, its first and last row in q, and the tile's first query among its own.

    Sequence i owns the tiles from starts[i] // QUERIES + i on: strictly increasing, enough for its rows.
    """
    indices = tl.arange(0, SEQUENCES)
    starts = tl.load(starts_ptr + indices, mask=indices < sequences, other=0)
    opened = (indices < sequences) & (starts // QUERIES + indices <= tile)
    sequence = tl.sum(opened.to(tl.int32), 0) - 1
    row_first = tl.load(starts_ptr + sequence)
    row_last = tl.load(starts_ptr + sequence + 1)
    return sequence, row_first, row_last, (tile - (row_first // QUERIES + sequence)) * QUERIES


@triton.jit
def _attend_chunk(
    query_ptr, key_ptr, value_ptr, tables_ptr, starts_ptr, lengths_ptr, mask_ptr, output_ptr,
    sequences, scale_log2,
    query_row, query_head, key_block, key_slot, key_head, value_block, value_slot, value_head,
    table_row, mask_row, output_row, output_head,
    SEQUENCES: tl.constexpr, GROUP: tl.constexpr, ROWS: tl.constexpr, DIM: tl.constexpr,
    WIDTH: tl.constexpr, BLOCK: tl.constexpr, TILE: tl.constexpr, MASKED: tl.constexpr,
    TYPE: tl.constexpr,
):  # fmt: skip
    """Grid (tiles, KV heads), tiles = tokens // (ROWS // GROUP) + sequences; spare tiles return at once."""
    QUERIES: tl.constexpr = ROWS // GROUP
    # Late tiles see the most tokens: they start first, so that short ones fill the end of the launch.
    tile = tl.num_programs(0) - 1 - tl.program_id(0)
    kv_head = tl.program_id(1)
    sequence, row_first, row_last, query_first = _owner(starts_ptr, sequences, tile, SEQUENCES, QUERIES)
    length = tl.load(lengths_ptr + sequence)
    count = row_last - row_first
    if query_first >= count:
        return

    lanes = tl.arange(0, ROWS)
    dims = tl.arange(0, WIDTH)
    queries = query_first + lanes // GROUP
    heads = kv_head * GROUP + lanes % GROUP
    valid = (lanes < QUERIES * GROUP) & (queries < count)
    rows = (row_first + queries).to(tl.int64)
    prefix = length - count
    positions = prefix + queries
    held = valid[:, None] & (dims < DIM)[None, :]
    query = tl.load(
        query_ptr + rows[:, None] * query_row + heads[:, None] * query_head + dims[None, :],
        mask=held, other=0.0,
    ).to(TYPE)  # fmt: skip

    best = tl.full([ROWS], float("-inf"), tl.float32)
    total = tl.zeros([ROWS], tl.float32)
    mixed = tl.zeros([ROWS, WIDTH], tl.float32)
    table = tables_ptr + sequence.to(tl.int64) * table_row
    keys = key_ptr + kv_head * key_head
    values = value_ptr + kv_head * value_head
    if MASKED:
        common = 0
        last = length
    else:
        common = (prefix + query_first + 1) // TILE * TILE
        last = tl.minimum(length, prefix + query_first + QUERIES)
    for compare in tl.static_range(2):
        best, total, mixed = _attend_tiles(
            query, best, total, mixed, keys, values, table, mask_ptr,
            compare * common, last if compare else common, length, rows, positions, valid, scale_log2,
            key_block, key_slot, value_block, value_slot, mask_row,
            DIM, WIDTH, BLOCK, TILE, compare == 1, MASKED, TYPE,
        )  # fmt: skip
    mixed = mixed / tl.where(total > 0.0, total, 1.0)[:, None]
    tl.store(
        output_ptr + rows[:, None] * output_row + heads[:, None] * output_head + dims[None, :],
        mixed.to(output_ptr.dtype.element_ty), mask=held,
    )  # fmt: skip


TILES = (
    Tile(128, 64, 8, 3), Tile(128, 64, 8, 5), Tile(128, 128, 8, 3), Tile(128, 32, 8, 5), Tile(64, 64, 4, 3),
    Tile(64, 64, 4, 5),
)  # fmt: skip
"""Tiles worth comparing on a GPU, for 16-bit types and heads of up to 128: see `kernels.tuning`."""


def tile_for(dtype: torch.dtype, width: int, group: int, short: bool, capability: int) -> Tile:
    """The largest tile that stays in registers (compiled for sm_80 and sm_90); `short`: chunks of few rows.

    float32 multiplies exactly, without tensor cores, in unrolled code that spills from 32 by 32 on.
    """
    if dtype is torch.float32:
        tile = Tile(32 if width <= 64 else 16, 16, 8, 2)
    elif width > 128:
        tile = Tile(64, 32, 8, 2)
    elif short:
        tile = Tile(64, 32, 4 if capability >= 90 or width <= 64 else 8, 5)
    else:
        tile = Tile(128, 64 if capability >= 90 or width <= 64 else 32, 8, 5)
    return tile._replace(rows=power_of_two(group, tile.rows))


def prefill_attention(
    q: Tensor,
    keys: Tensor,
    values: Tensor,
    block_table: Tensor,
    query_starts: Tensor,
    lengths: Tensor,
    scale: float,
    mask: Tensor | None = None,
) -> Tensor:
    """Chunks: the last n positions of each sequence attend causally to it, cached prefix included.

    q: [tokens, heads, dim], last dimension contiguous; keys, values: [blocks, block_size, kv_heads, dim],
    last dimension contiguous, of q's dtype or a float8 one; block_table: [sequences, most blocks] int32,
    rows contiguous; query_starts: [sequences + 1] int32, contiguous; lengths: [sequences] int32, contiguous;
    mask: bool [tokens, ≥ max(lengths)], rows contiguous, replaces the causal rule; a row that sees nothing
    becomes zero. Returns a new contiguous [tokens, heads, dim] of q's dtype. Grid: (tiles, kv_heads) with
    tiles = tokens // queries + sequences. Raises TypeError for other dtypes. Long chunks of 16-bit types
    without a mask have a kernel of their own on Hopper: see `prefill_hopper`.
    """
    tokens, heads, dim = q.shape
    short, capability = tokens <= 16 * lengths.shape[0], properties(q.device)[1]
    if capability == 90 and mask is None and not short:
        # Gluon may still change between releases of Triton: only those who can use it depend on it.
        from kernels import prefill_hopper

        if prefill_hopper.serves(q, keys, values):
            return prefill_hopper.attend(q, keys, values, block_table, query_starts, lengths, scale)
    tile = tile_for(q.dtype, power_of_two(dim, 16), heads // keys.shape[2], short, capability)
    return attend(q, keys, values, block_table, query_starts, lengths, scale, mask, tile)


def attend(
    q: Tensor,
    keys: Tensor,
    values: Tensor,
    block_table: Tensor,
    query_starts: Tensor,
    lengths: Tensor,
    scale: float,
    mask: Tensor | None,
    tile: Tile,
) -> Tensor:
    """`prefill_attention` with a tile of one's own: `rows` a power of two ≥ the query heads of a KV head."""
    tokens, heads, dim = q.shape
    size, kv_heads = keys.shape[1:3]
    sequences = lengths.shape[0]
    group = heads // kv_heads
    output = torch.empty((tokens, heads, dim), dtype=q.dtype, device=q.device)
    if tokens == 0:
        return output
    _attend_chunk[(tokens // (tile.rows // group) + sequences, kv_heads)](
        q, keys, values, block_table, query_starts, lengths, output if mask is None else mask, output,
        sequences, scale * LOG2E,
        q.stride(0), q.stride(1), *keys.stride()[:3], *values.stride()[:3],
        block_table.stride(0), 0 if mask is None else mask.stride(0), output.stride(0), output.stride(1),
        SEQUENCES=power_of_two(sequences), GROUP=group, ROWS=tile.rows, DIM=dim,
        WIDTH=power_of_two(dim, 16), BLOCK=size, TILE=tile.tokens, MASKED=mask is not None,
        TYPE=dot_type(_attend_chunk, q.dtype), num_warps=tile.warps, num_stages=tile.stages,
        maxnreg=register_limit(q.dtype),
    )  # fmt: skip
    return output
