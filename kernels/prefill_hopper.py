"""Prefill attention for Hopper: what `prefill_attention` computes, with copies, products and softmax at once.

A program takes 128 rows: two consumers of 64 (a warpgroup each), and a producer (a warp) that feeds both.

    producer   block table ─▶ bulk copies of whole blocks ─▶ ring of key and value tiles
    consumer   wait for a tile · queries × keys · softmax · weights × values · give the tile back

The consumers drift apart, so that one multiplies while the other computes its softmax (FlashAttention-3,
arXiv 2407.08608). Written in Gluon, Triton's language of layouts and barriers, which its interpreter does not
know: what the tests here can say is that it compiles, those on a GPU that it is right.
"""

# A kernel's arguments are pointers and scalars of the device: they have no Python types.
# mypy: allow-untyped-defs, allow-incomplete-defs

from __future__ import annotations

import torch
from torch import Tensor
from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import (
    fence_async_shared,
    mbarrier,
    tma,
    warpgroup_mma,
    warpgroup_mma_wait,
)
from triton.experimental.gluon.nvidia.hopper import TensorDescriptor

from kernels.launch import LOG2E, power_of_two

_ROWS = 64
"""Of a consumer."""
_TILE = 128
_STAGES = 2
_CHUNK = 64
"""Dimensions that a bulk copy takes: 128 bytes of a row, the most that shared memory is swizzled by."""
_BLOCKS = (16, 32, 64, 128)
_DIMS = (64, 128)
_CONSUMER_REGISTERS, _PRODUCER_REGISTERS = 232, 40
_REGISTERS = 168
"""Of a thread before the warpgroups trade theirs: 3 × 128 threads share 65,536."""
_SHARED = gl.NVMMASharedLayout(swizzle_byte_width=128, element_bitwidth=16, rank=2)


@gluon.jit
def _produce(
    keys, values, rings, barriers, table, tiles, length, kv_head,
    DIM: gl.constexpr, BLOCK: gl.constexpr, TILE: gl.constexpr, STAGES: gl.constexpr, CHUNK: gl.constexpr,
):  # fmt: skip
    """Copy every tile's blocks. Blocks beyond the sequence are read beyond the cache, which gives zeros."""
    key_ring, value_ring = rings
    key_ready, key_free, value_ready, value_free = barriers
    boxes: gl.constexpr = TILE // BLOCK
    chunks: gl.constexpr = DIM // CHUNK
    nbytes: gl.constexpr = TILE * DIM * 2
    beyond = keys.shape[0]
    for tile in range(tiles):
        stage = tile % STAGES
        phase = tile // STAGES & 1 ^ 1
        rows = ()
        for box in gl.static_range(boxes):
            token = tile * TILE + box * BLOCK
            block = gl.load(table + gl.minimum(token, length - 1) // BLOCK)
            row = gl.where(token < length, block * BLOCK, beyond)
            rows = rows + (row,)  # type: ignore[assignment]  # noqa: RUF005 (Gluon unpacks nothing)
        mbarrier.wait(key_free.index(stage), phase)
        mbarrier.expect(key_ready.index(stage), nbytes)
        for chunk in gl.static_range(chunks):
            for box in gl.static_range(boxes):
                tma.async_copy_global_to_shared(
                    keys, [rows[box], kv_head * DIM + chunk * CHUNK], key_ready.index(stage),
                    key_ring.index((stage * chunks + chunk) * boxes + box),
                )  # fmt: skip
        mbarrier.wait(value_free.index(stage), phase)
        mbarrier.expect(value_ready.index(stage), nbytes)
        for chunk in gl.static_range(chunks):
            for box in gl.static_range(boxes):
                tma.async_copy_global_to_shared(
                    values, [rows[box], kv_head * DIM + chunk * CHUNK], value_ready.index(stage),
                    value_ring.index((stage * chunks + chunk) * boxes + box),
                )  # fmt: skip


@gluon.jit
def _clear_tail(
    ring, stage, tile, length,
    DIM: gl.constexpr, BLOCK: gl.constexpr, TILE: gl.constexpr, CHUNK: gl.constexpr,
):  # fmt: skip
    """Zero what lies behind the sequence in its last block: a weight of zero does not hide a NaN there."""
    layout: gl.constexpr = gl.BlockedLayout([1, 8], [4, 8], [4, 1], [1, 0])
    boxes: gl.constexpr = TILE // BLOCK
    chunks: gl.constexpr = DIM // CHUNK
    if (tile + 1) * TILE > length:
        box = (length - 1 - tile * TILE) // BLOCK
        slots = tile * TILE + box * BLOCK + gl.arange(0, BLOCK, layout=gl.SliceLayout(1, layout))
        for chunk in gl.static_range(chunks):
            part = ring.index((stage * chunks + chunk) * boxes + box)
            found = part.load(layout)
            part.store(gl.where((slots < length)[:, None], found, 0.0))
        fence_async_shared()


@gluon.jit
def _consume(
    queries, rings, barriers, output_ptr, tiles, common, length, row_first, count, query_first, kv_head,
    scale_log2, output_row, output_head, part: gl.constexpr,
    GROUP: gl.constexpr, ROWS: gl.constexpr, DIM: gl.constexpr, BLOCK: gl.constexpr, TILE: gl.constexpr,
    STAGES: gl.constexpr, CHUNK: gl.constexpr,
):  # fmt: skip
    """One consumer: rows `part` · ROWS on of the program. The first `common` tiles are seen whole by all."""
    key_ring, value_ring = rings
    key_ready, key_free, value_ready, value_free = barriers
    kind: gl.constexpr = key_ring.dtype
    scored: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], instr_shape=[16, TILE, 16])
    mixing: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], instr_shape=[16, DIM, 16])
    weighed: gl.constexpr = gl.DotOperandLayout(0, mixing, k_width=2)
    shared: gl.constexpr = gl.NVMMASharedLayout(128, 16, 2)
    key_tiles = key_ring._reinterpret(kind, [STAGES, TILE, DIM], shared)
    value_tiles = value_ring._reinterpret(kind, [STAGES, TILE, DIM], shared)
    query = queries.index(part)

    lanes = part * ROWS + gl.arange(0, ROWS, layout=gl.SliceLayout(1, scored))
    mine = query_first + lanes // GROUP
    positions = length - count + mine
    best = gl.full([ROWS], float("-inf"), gl.float32, gl.SliceLayout(1, scored))
    total = gl.full([ROWS], 0.0, gl.float32, gl.SliceLayout(1, scored))
    mixed = gl.zeros([ROWS, DIM], gl.float32, mixing)
    nothing = gl.zeros([ROWS, TILE], gl.float32, scored)
    for compare in gl.static_range(2):
        for tile in range(common if compare else 0, tiles if compare else common):
            stage = tile % STAGES
            phase = tile // STAGES & 1
            mbarrier.wait(key_ready.index(stage), phase)
            scores = warpgroup_mma(
                query, key_tiles.index(stage).permute((1, 0)), nothing, use_acc=False, is_async=True
            )
            scores = warpgroup_mma_wait(0, deps=[scores])
            mbarrier.arrive(key_free.index(stage), count=1)
            if compare:
                tokens = tile * TILE + gl.arange(0, TILE, layout=gl.SliceLayout(0, scored))
                seen = tokens[None, :] <= positions[:, None]
                scores = gl.where(seen, scores, float("-inf"))
            higher = gl.maximum(best, gl.max(scores, 1) * scale_log2)
            weights = gl.exp2(scores * scale_log2 - higher[:, None])
            decay = gl.exp2(best - higher)
            total = total * decay + gl.sum(weights, 1)
            best = higher
            mixed = mixed * gl.convert_layout(decay, gl.SliceLayout(1, mixing))[:, None]
            weights = gl.convert_layout(weights.to(kind), weighed)
            mbarrier.wait(value_ready.index(stage), phase)
            if compare:
                _clear_tail(value_ring, stage, tile, length, DIM, BLOCK, TILE, CHUNK)
            mixed = warpgroup_mma(weights, value_tiles.index(stage), mixed, is_async=True)
            mixed = warpgroup_mma_wait(0, deps=[mixed])
            mbarrier.arrive(value_free.index(stage), count=1)

    rows = gl.arange(0, ROWS, layout=gl.SliceLayout(1, mixing)) + part * ROWS
    theirs = query_first + rows // GROUP
    heads = kv_head * GROUP + rows % GROUP
    dims = gl.arange(0, DIM, layout=gl.SliceLayout(0, mixing))
    mixed = mixed / gl.convert_layout(total, gl.SliceLayout(1, mixing))[:, None]
    places = (row_first + theirs).to(gl.int64) * output_row + heads * output_head
    held = (theirs < count) & (rows < (2 * ROWS) // GROUP * GROUP)
    gl.store(output_ptr + places[:, None] + dims[None, :], mixed.to(kind), mask=held[:, None])


@gluon.jit
def _load_queries(
    query_ptr, queries, part: gl.constexpr, row_first, count, query_first, kv_head, query_row, query_head,
    GROUP: gl.constexpr, ROWS: gl.constexpr, DIM: gl.constexpr,
):  # fmt: skip
    layout: gl.constexpr = gl.BlockedLayout([1, 8], [256 // DIM, DIM // 8], [4, 1], [1, 0])
    rows = part * ROWS + gl.arange(0, ROWS, layout=gl.SliceLayout(1, layout))
    dims = gl.arange(0, DIM, layout=gl.SliceLayout(0, layout))
    mine = query_first + rows // GROUP
    heads = kv_head * GROUP + rows % GROUP
    places = (row_first + mine).to(gl.int64) * query_row + heads * query_head
    found = gl.load(query_ptr + places[:, None] + dims[None, :], mask=(mine < count)[:, None], other=0.0)
    queries.index(part).store(found)


@gluon.jit
def _attend_chunk(
    query_ptr, keys, values, tables_ptr, starts_ptr, lengths_ptr, output_ptr,
    sequences, scale_log2, query_row, query_head, table_row, output_row, output_head,
    SEQUENCES: gl.constexpr, GROUP: gl.constexpr, ROWS: gl.constexpr, DIM: gl.constexpr,
    BLOCK: gl.constexpr, TILE: gl.constexpr, STAGES: gl.constexpr, CHUNK: gl.constexpr,
    CONSUMER: gl.constexpr, PRODUCER: gl.constexpr,
):  # fmt: skip
    """Grid (tiles, KV heads), as in `prefill_attention`; keys, values: descriptors, [slots, heads · DIM]."""
    QUERIES: gl.constexpr = 2 * ROWS // GROUP
    kind: gl.constexpr = keys.dtype
    # Late tiles see the most tokens: they start first, so that short ones fill the end of the launch.
    tile = gl.num_programs(0) - 1 - gl.program_id(0)
    kv_head = gl.program_id(1)
    indices = gl.arange(0, SEQUENCES, layout=gl.BlockedLayout([1], [32], [4], [0]))
    starts = gl.load(starts_ptr + indices, mask=indices < sequences, other=0)
    opened = (indices < sequences) & (starts // QUERIES + indices <= tile)
    sequence = gl.sum(opened.to(gl.int32), 0) - 1
    row_first = gl.load(starts_ptr + sequence)
    count = gl.load(starts_ptr + sequence + 1) - row_first
    query_first = (tile - (row_first // QUERIES + sequence)) * QUERIES
    length = gl.load(lengths_ptr + sequence)
    prefix = length - count
    # A spare tile has no rows: nothing is copied, and nothing stored.
    last = gl.where(query_first < count, gl.minimum(length, prefix + query_first + QUERIES), 0)
    tiles = gl.cdiv(last, TILE)
    common = gl.minimum((prefix + query_first + 1) // TILE, tiles)

    boxes: gl.constexpr = STAGES * (TILE // BLOCK) * (DIM // CHUNK)
    queries = gl.allocate_shared_memory(kind, [2, ROWS, DIM], gl.NVMMASharedLayout(128, 16, 2))
    rings = (
        gl.allocate_shared_memory(kind, [boxes, BLOCK, CHUNK], keys.layout),
        gl.allocate_shared_memory(kind, [boxes, BLOCK, CHUNK], values.layout),
    )
    key_ready = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    key_free = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    value_ready = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    value_free = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    for stage in gl.static_range(STAGES):
        mbarrier.init(key_ready.index(stage), count=1)
        mbarrier.init(key_free.index(stage), count=2)
        mbarrier.init(value_ready.index(stage), count=1)
        mbarrier.init(value_free.index(stage), count=2)
    for part in gl.static_range(2):
        _load_queries(
            query_ptr, queries, part, row_first, count, query_first, kv_head, query_row, query_head,
            GROUP, ROWS, DIM,
        )  # fmt: skip
    fence_async_shared()

    barriers = (key_ready, key_free, value_ready, value_free)
    table = tables_ptr + sequence.to(gl.int64) * table_row
    gl.warp_specialize(
        [
            (
                _consume,
                (
                    queries, rings, barriers, output_ptr, tiles, common, length, row_first, count,
                    query_first, kv_head, scale_log2, output_row, output_head, 0,
                    GROUP, ROWS, DIM, BLOCK, TILE, STAGES, CHUNK,
                ),
            ),
            (
                _consume,
                (
                    queries, rings, barriers, output_ptr, tiles, common, length, row_first, count,
                    query_first, kv_head, scale_log2, output_row, output_head, 1,
                    GROUP, ROWS, DIM, BLOCK, TILE, STAGES, CHUNK,
                ),
            ),
            (
                _produce,
                (keys, values, rings, barriers, table, tiles, length, kv_head,
                 DIM, BLOCK, TILE, STAGES, CHUNK),
            ),
        ],
        [4, 1],
        [CONSUMER, PRODUCER],
    )  # fmt: skip


def serves(q: Tensor, keys: Tensor, values: Tensor) -> bool:
    """Whether this kernel may compute what `prefill_attention` is asked for, the mask aside."""
    kind, (_, size, kv_heads, dim) = q.dtype, keys.shape
    return (
        kind in (torch.bfloat16, torch.float16)
        and keys.dtype == values.dtype == kind
        and dim in _DIMS
        and size in _BLOCKS
        and q.shape[1] // kv_heads <= 2 * _ROWS
        and all(one.is_contiguous() and one.data_ptr() % 16 == 0 for one in (keys, values))
    )


def attend(
    q: Tensor,
    keys: Tensor,
    values: Tensor,
    block_table: Tensor,
    query_starts: Tensor,
    lengths: Tensor,
    scale: float,
) -> Tensor:
    """`prefill_attention` without a mask, for what `serves`."""
    tokens, heads, dim = q.shape
    size, kv_heads = keys.shape[1:3]
    sequences, group = lengths.shape[0], heads // kv_heads
    output = torch.empty((tokens, heads, dim), dtype=q.dtype, device=q.device)
    if tokens == 0:
        return output
    key_blocks, value_blocks = (
        TensorDescriptor.from_tensor(one.view(-1, kv_heads * dim), [size, _CHUNK], _SHARED)
        for one in (keys, values)
    )
    _attend_chunk[(tokens // (2 * _ROWS // group) + sequences, kv_heads)](
        q, key_blocks, value_blocks, block_table, query_starts, lengths, output,
        sequences, scale * LOG2E,
        q.stride(0), q.stride(1), block_table.stride(0), output.stride(0), output.stride(1),
        SEQUENCES=power_of_two(sequences), GROUP=group, ROWS=_ROWS, DIM=dim, BLOCK=size, TILE=_TILE,
        STAGES=_STAGES, CHUNK=_CHUNK, CONSUMER=_CONSUMER_REGISTERS, PRODUCER=_PRODUCER_REGISTERS,
        num_warps=4, maxnreg=_REGISTERS,
    )  # fmt: skip
    return output
