"""Decode attention over paged KV: one query per sequence, its KV split over programs and combined.

Each program takes one sequence, one KV head with its whole group of query heads, and one span of
the sequence's tokens (flash decoding: Dao et al., 2023; blocks of KV: PagedAttention, arXiv 2309.06180).

    query ─┬─ span 0 ─ partial output, log2 of its softmax denominator ─┐
           ├─ span 1 ─            …                                      ├─ weighted sum ─ output
           └─ span 2 ─            …                                      ┘

The spans follow from a sequence's own length and the number of splits. The host never reads a
length, so a launch can be captured in a CUDA graph.
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

_LEAST_SPAN = 128
_MOST_SPLITS = 64
_PROGRAMS_PER_PROCESSOR = 4


@triton.jit
def _attend_span(
    query_ptr, key_ptr, value_ptr, tables_ptr, lengths_ptr, output_ptr, partial_ptr, denominator_ptr,
    scale_log2,
    query_row, query_head, key_block, key_slot, key_head, value_block, value_slot, value_head,
    table_row, output_row, output_head,
    GROUP: tl.constexpr, ROWS: tl.constexpr, DIM: tl.constexpr, WIDTH: tl.constexpr,
    BLOCK: tl.constexpr, TILE: tl.constexpr, LEAST_SPAN: tl.constexpr, SPLIT: tl.constexpr,
    TYPE: tl.constexpr,
):  # fmt: skip
    """Grid (sequences, KV heads, splits); ROWS ≥ GROUP query heads and TILE tokens at a time."""
    sequence = tl.program_id(0).to(tl.int64)
    kv_head = tl.program_id(1)
    split = tl.program_id(2)
    splits = tl.num_programs(2)
    length = tl.load(lengths_ptr + sequence)
    span = tl.cdiv(tl.cdiv(length, splits), TILE) * TILE
    span = tl.maximum(span, LEAST_SPAN)
    first = split * span
    last = tl.minimum(first + span, length)

    rows = tl.arange(0, ROWS)
    dims = tl.arange(0, WIDTH)
    heads = kv_head * GROUP + rows
    held = (rows < GROUP)[:, None] & (dims < DIM)[None, :]
    query = tl.load(
        query_ptr + sequence * query_row + heads[:, None] * query_head + dims[None, :], mask=held, other=0.0
    ).to(TYPE)

    best = tl.full([ROWS], float("-inf"), tl.float32)
    total = tl.zeros([ROWS], tl.float32)
    mixed = tl.zeros([ROWS, WIDTH], tl.float32)
    keys = key_ptr + kv_head * key_head
    values = value_ptr + kv_head * value_head
    table = tables_ptr + sequence * table_row
    for start in range(first, last, TILE):
        tokens = start + tl.arange(0, TILE)
        inside = tokens < last
        best, total, mixed = fold_tile(
            query, best, total, mixed, keys, values, table, tokens, inside, inside[None, :], scale_log2,
            key_block, key_slot, value_block, value_slot, DIM, WIDTH, BLOCK, True, TYPE,
        )  # fmt: skip

    # An empty span has total 0: it stores zeros and weighs 2**-inf.
    mixed = mixed / tl.where(total > 0.0, total, 1.0)[:, None]
    if SPLIT:
        entries = (sequence * tl.num_programs(1) * GROUP + heads) * splits + split
        tl.store(partial_ptr + entries[:, None] * DIM + dims[None, :], mixed, mask=held)
        logs = tl.where(total > 0.0, best + tl.log2(tl.where(total > 0.0, total, 1.0)), float("-inf"))
        tl.store(denominator_ptr + entries, logs, mask=rows < GROUP)
    else:
        tl.store(
            output_ptr + sequence * output_row + heads[:, None] * output_head + dims[None, :],
            mixed.to(output_ptr.dtype.element_ty), mask=held,
        )  # fmt: skip


@triton.jit
def _combine_spans(
    partial_ptr, denominator_ptr, output_ptr, splits, output_row, output_head,
    DIM: tl.constexpr, WIDTH: tl.constexpr, SPLITS: tl.constexpr,
):  # fmt: skip
    """Grid (sequences, query heads); SPLITS ≥ splits, both at most 64."""
    sequence = tl.program_id(0).to(tl.int64)
    head = tl.program_id(1)
    entry = (sequence * tl.num_programs(1) + head) * splits
    parts = tl.arange(0, SPLITS)
    dims = tl.arange(0, WIDTH)
    logs = tl.load(denominator_ptr + entry + parts, mask=parts < splits, other=float("-inf"))
    highest = tl.max(logs, 0)
    # A sequence of length 0 pads a captured batch: every log is -inf and the output is zero.
    weights = tl.exp2(logs - tl.where(highest == float("-inf"), 0.0, highest))
    partial = tl.load(
        partial_ptr + (entry + parts)[:, None] * DIM + dims[None, :],
        mask=(weights > 0.0)[:, None] & (dims < DIM)[None, :], other=0.0,
    )  # fmt: skip
    total = tl.sum(weights, 0)
    mixed = tl.sum(partial * weights[:, None], 0) / tl.where(total > 0.0, total, 1.0)
    tl.store(
        output_ptr + sequence * output_row + head * output_head + dims,
        mixed.to(output_ptr.dtype.element_ty), mask=dims < DIM,
    )  # fmt: skip


def split_count(sequences: int, kv_heads: int, longest: int, multiprocessors: int) -> int:
    """Splits that fill the device: a power of two, at most 64, no span under 128 tokens."""
    wanted = triton.cdiv(_PROGRAMS_PER_PROCESSOR * multiprocessors, max(1, sequences * kv_heads))
    return max(1, min(power_of_two(wanted), power_of_two(triton.cdiv(longest, _LEAST_SPAN)), _MOST_SPLITS))


TILES = (
    Tile(16, 64, 4, 3), Tile(16, 64, 4, 5), Tile(16, 32, 4, 3), Tile(16, 32, 4, 5), Tile(16, 32, 2, 5),
    Tile(16, 128, 4, 3),
)  # fmt: skip
"""Tiles worth comparing on a GPU, for 16-bit types and heads of up to 128: see `kernels.tuning`."""


def tile_for(dtype: torch.dtype, width: int, group: int) -> Tile:
    """The tile for activations of `dtype`, heads of `width` dimensions, and so many query heads a KV head.

    float32 multiplies exactly, without tensor cores: more warps hold its unrolled code in registers.
    """
    rows = power_of_two(group, 16)
    if dtype is torch.float32:
        return Tile(rows, 16, 8, 2)
    return Tile(rows, 32, 4, 2) if width > 128 else Tile(rows, 64, 4, 3)


def paged_attention(
    q: Tensor, keys: Tensor, values: Tensor, block_table: Tensor, lengths: Tensor, scale: float
) -> Tensor:
    """Decode: each row attends to all positions of its sequence, its own included.

    q: [batch, heads, dim], last dimension contiguous; keys, values: [blocks, block_size, kv_heads, dim],
    last dimension contiguous, of q's dtype or a float8 one (the device must know the type: e4m3 needs
    compute capability 8.9); block_table: [batch, most blocks] int32, rows contiguous, entries beyond a
    row's length are ignored; lengths: [batch] int32, contiguous, 0 gives zeros; scale: usually dim ** -0.5.
    Returns a new contiguous [batch, heads, dim] of q's dtype. Grids: (batch, kv_heads, splits), then
    (batch, heads) if splits > 1. Raises TypeError for other dtypes.
    """
    tile = tile_for(q.dtype, power_of_two(q.shape[2], 16), q.shape[1] // keys.shape[2])
    return attend(q, keys, values, block_table, lengths, scale, tile)


def attend(
    q: Tensor, keys: Tensor, values: Tensor, block_table: Tensor, lengths: Tensor, scale: float, tile: Tile
) -> Tensor:
    """`paged_attention` with a tile of one's own: `rows` a power of two, ≥ 16 and ≥ the group."""
    batch, heads, dim = q.shape
    size, kv_heads = keys.shape[1:3]
    width = power_of_two(dim, 16)
    splits = split_count(batch, kv_heads, block_table.shape[1] * size, properties(q.device)[0])
    output = torch.empty((batch, heads, dim), dtype=q.dtype, device=q.device)
    partial = output.new_empty((batch, heads, splits, dim) if splits > 1 else (1,), dtype=torch.float32)
    logs = output.new_empty((batch, heads, splits) if splits > 1 else (1,), dtype=torch.float32)
    _attend_span[(batch, kv_heads, splits)](
        q, keys, values, block_table, lengths, output, partial, logs,
        scale * LOG2E,
        q.stride(0), q.stride(1), *keys.stride()[:3], *values.stride()[:3],
        block_table.stride(0), output.stride(0), output.stride(1),
        GROUP=heads // kv_heads, ROWS=tile.rows, DIM=dim, WIDTH=width,
        BLOCK=size, TILE=tile.tokens, LEAST_SPAN=_LEAST_SPAN, SPLIT=splits > 1,
        TYPE=dot_type(_attend_span, q.dtype), num_warps=tile.warps, num_stages=tile.stages,
        maxnreg=register_limit(q.dtype),
    )  # fmt: skip
    if splits > 1:
        _combine_spans[(batch, heads)](
            partial, logs, output, splits, output.stride(0), output.stride(1),
            DIM=dim, WIDTH=width, SPLITS=power_of_two(splits), num_warps=4,
        )  # fmt: skip
    return output
