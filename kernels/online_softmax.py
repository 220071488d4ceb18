"""One tile of paged attention folded into a running softmax (FlashAttention, arXiv 2205.14135)."""

# A kernel's arguments are pointers and scalars of the device: they have no Python types.
# mypy: allow-untyped-defs, allow-incomplete-defs

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def fold_tile(
    query, best, total, mixed, keys, values, table, tokens, inside, seen, scale_log2,
    key_block, key_slot, value_block, value_slot,
    DIM: tl.constexpr, WIDTH: tl.constexpr, BLOCK: tl.constexpr, COMPARE: tl.constexpr, TYPE: tl.constexpr,
):  # fmt: skip
    """best, total, mixed after the tile's tokens: highest score (log2), weights' sum, weighted values.

    query: [ROWS, WIDTH] of TYPE; best, total: [ROWS] float32; mixed: [ROWS, WIDTH] float32; keys, values:
    pointers to one KV head of one layer; table: pointer to one sequence's blocks; tokens: [TILE] positions;
    inside: bool [TILE], which of them exist; seen: bool, broadcast to [ROWS, TILE], used if COMPARE.
    """
    dims = tl.arange(0, WIDTH)
    blocks = tl.load(table + tokens // BLOCK, mask=inside, other=0).to(tl.int64)
    slots = tokens % BLOCK
    key = tl.load(
        keys + (blocks * key_block + slots * key_slot)[None, :] + dims[:, None],
        mask=inside[None, :] & (dims < DIM)[:, None], other=0.0,
    ).to(TYPE)  # fmt: skip
    scores = tl.dot(query, key, input_precision="ieee") * scale_log2
    if COMPARE:
        scores = tl.where(seen, scores, float("-inf"))
    higher = tl.maximum(best, tl.max(scores, 1))
    # Under a mask a row may have seen nothing yet: keep -inf out of the differences.
    base = tl.where(higher == float("-inf"), 0.0, higher)
    weights = tl.exp2(scores - base[:, None])
    decay = tl.exp2(best - base)
    value = tl.load(
        values + (blocks * value_block + slots * value_slot)[:, None] + dims[None, :],
        mask=inside[:, None] & (dims < DIM)[None, :], other=0.0,
    ).to(TYPE)  # fmt: skip
    total = total * decay + tl.sum(weights, 1)
    mixed = tl.dot(weights.to(TYPE), value, mixed * decay[:, None], input_precision="ieee")
    return higher, total, mixed
