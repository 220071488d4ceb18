"""One tile of paged attention folded into a running softmax (FlashAttention, arXiv 2205.14135)."""

# A kernel's arguments are pointers and scalars of the device: they have no Python types.
# mypy: allow-untyped-defs, allow-incomplete-defs

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def _load(pointers, inside, WHOLE: tl.constexpr):
    """A mask costs instructions even where it hides nothing."""
    if WHOLE:
        return tl.load(pointers)
    return tl.load(pointers, mask=inside, other=0.0)


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
    # A tile that every row sees whole has no token beyond the last.
    blocks = _load(table + tokens // BLOCK, inside, not COMPARE).to(tl.int64)
    slots = tokens % BLOCK
    whole: tl.constexpr = not COMPARE and DIM == WIDTH
    key = _load(
        keys + (blocks * key_block + slots * key_slot)[None, :] + dims[:, None],
        inside[None, :] & (dims < DIM)[:, None], whole,
    ).to(TYPE)  # fmt: skip
    scores = tl.dot(query, key, input_precision="ieee")
    if COMPARE:
        scores = tl.where(seen, scores, float("-inf"))
    # The scale is applied to differences, which takes one instruction an element with the subtraction.
    higher = tl.maximum(best, tl.max(scores, 1) * scale_log2)
    # Under a mask a row may have seen nothing yet: keep -inf out of the differences.
    base = tl.where(higher == float("-inf"), 0.0, higher)
    weights = tl.exp2(scores * scale_log2 - base[:, None])
    decay = tl.exp2(best - base)
    value = _load(
        values + (blocks * value_block + slots * value_slot)[:, None] + dims[None, :],
        inside[:, None] & (dims < DIM)[None, :], whole,
    ).to(TYPE)  # fmt: skip
    total = total * decay + tl.sum(weights, 1)
    mixed = tl.dot(weights.to(TYPE), value, mixed * decay[:, None], input_precision="ieee")
    return higher, total, mixed
