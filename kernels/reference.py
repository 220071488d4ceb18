"""The plain-torch definition of every kernel: what the fast paths must agree with, written to be read.

Shapes. `tokens` counts the rows of a flattened step, `rows` the logits that are drawn from.
A layer's KV cache is two tensors `keys` and `values` of shape [blocks, block_size, kv_heads, dim],
contiguous views of one pool. Slot s is position s % block_size of block s // block_size. Position p of a
sequence lies in block block_table[p // block_size]. Query head h reads KV head h // (heads // kv_heads).

Precision. Sums, norms, angles and softmax are computed in float32 (float64 for float64 inputs) and
rounded once, to the input's dtype.
"""

from __future__ import annotations

import torch
from torch import Tensor


def wide(dtype: torch.dtype) -> torch.dtype:
    """The dtype to accumulate in."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def rounded(x: Tensor) -> Tensor:
    """x with each 32 neighbours rounded to whole multiples, −127 to 127, of the largest of them / 127.

    x: [..., inputs] float32, inputs a multiple of 32; a group below 1e-35 becomes 0. What the integer kernels
    multiply 4-bit weights with, as llama.cpp does by Q8_1: the products are those of these numbers.
    """
    groups = x.unflatten(-1, (-1, 32))
    top = groups.abs().amax(-1, keepdim=True)
    top = torch.where(top < 1e-35, 0.0, top)
    steps = (groups * torch.where(top == 0, 0.0, 127 / top)).round()
    return (steps * (top / 127)).flatten(-2)


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """x / sqrt(mean(x²) + eps) · weight over the last dimension.

    x: [..., dim], last dimension contiguous; weight: [dim]. Returns a new tensor of x's shape and dtype.
    """
    high = x.to(wide(x.dtype))
    scaled = high * torch.rsqrt(high.square().mean(-1, keepdim=True) + eps)
    return (scaled * weight.to(high.dtype)).to(x.dtype)


def add_rms_norm(x: Tensor, residual: Tensor, weight: Tensor, eps: float) -> Tensor:
    """residual += x, in place; returns rms_norm(residual).

    x, residual: [tokens, hidden], contiguous, same dtype; weight: [hidden].
    """
    residual.add_(x)
    return rms_norm(residual, weight, eps)


def silu_mul(gate_up: Tensor) -> Tensor:
    """silu(gate) · up. gate_up: [tokens, 2 · width], gate in the first half. Returns [tokens, width]."""
    gate, up = gate_up.to(wide(gate_up.dtype)).chunk(2, dim=-1)
    return (gate * torch.sigmoid(gate) * up).to(gate_up.dtype)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary embedding: dimension i turns with dimension i + dim/2.

    x: [tokens, heads, dim], any strides with a contiguous last dimension; cos, sin: [tokens, dim/2].
    """
    high = x.to(torch.promote_types(wide(x.dtype), cos.dtype))
    first, second = high.chunk(2, dim=-1)
    cos, sin = cos.unsqueeze(1), sin.unsqueeze(1)
    turned = torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)
    return turned.to(x.dtype)


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

    q: [tokens, heads, dim]; k, v: [tokens, kv_heads, dim], all three may be column slices of one fused
    projection (only the last dimension is contiguous); cos, sin: [tokens, dim/2] float32;
    keys, values: [blocks, block_size, kv_heads, dim], written in place, float8 too (values beyond its range
    saturate); slots: [tokens] int64, distinct but for −1, which writes nowhere: rows that pad a batch.
    Returns [tokens, heads, dim], contiguous.
    """
    place(keys, slots, rotate(k, cos, sin))
    place(values, slots, v)
    return rotate(q, cos, sin)


def place(cache: Tensor, slots: Tensor, rows: Tensor) -> None:
    """Write rows [tokens, kv_heads, dim] to their slots of `keys` or `values`, in the cache's dtype."""
    kept = slots >= 0
    flat, rows, slots = cache.view(-1, *cache.shape[2:]), rows[kept], slots[kept]
    if cache.element_size() == 1:
        # torch neither saturates nor has index_copy_ for float8: values are cut and bytes placed.
        most = torch.finfo(cache.dtype).max
        flat, rows = flat.view(torch.uint8), rows.clamp(-most, most).to(cache.dtype).view(torch.uint8)
    flat.index_copy_(0, slots, rows.to(flat.dtype))


def attend(q: Tensor, keys: Tensor, values: Tensor, visible: Tensor, scale: float) -> Tensor:
    """Dense attention of one sequence: q [n, heads, dim], keys and values [length, kv_heads, dim].

    visible: bool [n, length], True where a query may look; every query sees at least one key.
    """
    high = wide(q.dtype)
    groups = q.shape[1] // keys.shape[1]
    k = keys.to(high).repeat_interleave(groups, dim=1)
    v = values.to(high).repeat_interleave(groups, dim=1)
    scores = torch.einsum("nhd,lhd->hnl", q.to(high), k) * scale
    weights = scores.masked_fill(~visible, float("-inf")).softmax(-1)
    return torch.einsum("hnl,lhd->nhd", weights, v).to(q.dtype)


def paged(cache: Tensor, table: Tensor, length: int) -> Tensor:
    """Positions [0, length) of one sequence out of `keys` or `values`: [length, kv_heads, dim]."""
    return cache[table.long()].flatten(0, 1)[:length]


def paged_attention(
    q: Tensor, keys: Tensor, values: Tensor, block_table: Tensor, lengths: Tensor, scale: float
) -> Tensor:
    """Decode: each row attends to all positions of its sequence, its own included.

    q: [batch, heads, dim], contiguous; keys, values: [blocks, block_size, kv_heads, dim];
    block_table: [batch, most blocks] int32, entries beyond a row's length are ignored (any value within
    the pool); lengths: [batch] int32, 0 gives zeros; scale: float, usually dim ** -0.5.
    Returns q's shape and dtype.
    """
    out = torch.empty_like(q)
    size = keys.shape[1]
    for row, length in enumerate(lengths.tolist()):
        table = block_table[row, : -(-length // size)]
        seen = torch.ones(1, length, dtype=torch.bool, device=q.device)
        k, v = paged(keys, table, length), paged(values, table, length)
        out[row] = attend(q[row : row + 1], k, v, seen, scale)[0]
    return out


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

    q: [tokens, heads, dim], contiguous, the chunks of all sequences one after another;
    keys, values: [blocks, block_size, kv_heads, dim], which hold the chunk itself already;
    block_table: [sequences, most blocks] int32; query_starts: [sequences + 1] int32, where each
    sequence's rows begin in q, the last entry is `tokens`; lengths: [sequences] int32, positions of
    each sequence after this chunk. Row i of a sequence with n rows is position lengths − n + i.
    mask: bool [tokens, ≥ max(lengths)] replaces the causal rule (a draft tree, a sparse pattern):
    row t sees position j of its sequence iff j < length and mask[t, j]. Returns q's shape and dtype.
    """
    out = torch.empty_like(q)
    size = keys.shape[1]
    starts = query_starts.tolist()
    for row, length in enumerate(lengths.tolist()):
        first, last = starts[row], starts[row + 1]
        if first == last:
            continue
        table = block_table[row, : -(-length // size)]
        if mask is None:
            positions = torch.arange(length - (last - first), length, device=q.device)
            visible = torch.arange(length, device=q.device) <= positions[:, None]
        else:
            visible = mask[first:last, :length]
        k, v = paged(keys, table, length), paged(values, table, length)
        out[first:last] = attend(q[first:last], k, v, visible, scale)
    return out


def gather_blocks(pool: Tensor, blocks: Tensor, out: Tensor) -> None:
    """Copy blocks out of the pool, block by block.

    pool: [layers, 2, blocks, block_size, kv_heads, dim], contiguous; blocks: [n] int64;
    out: [n, layers, 2, block_size, kv_heads, dim], contiguous, written in place.
    """
    out.copy_(pool[:, :, blocks].permute(2, 0, 1, 3, 4, 5))


def scatter_blocks(pool: Tensor, blocks: Tensor, data: Tensor) -> None:
    """The inverse of gather_blocks: write data [n, layers, 2, …] into distinct blocks of the pool."""
    pool[:, :, blocks] = data.permute(1, 2, 0, 3, 4, 5)


def copy_blocks(pool: Tensor, sources: Tensor, targets: Tensor) -> None:
    """Copy whole blocks within the pool, all layers, keys and values.

    sources, targets: [n] int64. All sources are read before any target is written; targets are distinct.
    """
    pool[:, :, targets] = pool[:, :, sources].clone()


PHILOX_ROUNDS = 10
PHILOX_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
PHILOX_WEYL = (0x9E3779B9, 0xBB67AE85)
WORD = 0xFFFFFFFF


def philox(key: tuple[int, int], counter: tuple[int, int, int, int]) -> tuple[int, int, int, int]:
    """Philox4x32-10 (Salmon et al., "Parallel Random Numbers: As Easy as 1, 2, 3", SC 2011).

    Four 32-bit words as a pure function of a 2-word key and a 4-word counter.
    """
    k0, k1 = key
    c0, c1, c2, c3 = counter
    for _ in range(PHILOX_ROUNDS):
        low, high = PHILOX_MULTIPLIERS[0] * c0, PHILOX_MULTIPLIERS[1] * c2
        c0, c1, c2, c3 = (high >> 32) ^ c1 ^ k0, high & WORD, (low >> 32) ^ c3 ^ k1, low & WORD
        k0, k1 = (k0 + PHILOX_WEYL[0]) & WORD, (k1 + PHILOX_WEYL[1]) & WORD
    return c0, c1, c2, c3


def draw_key(seed: int, choice: int, position: int) -> tuple[int, int]:
    """Two random 32-bit words that name the draw of one token: a pure function of what names the token.

    The first two words of philox with key = the seed's low 64 bits as (low word, high word) and
    counter = (position, choice, 0, 0).
    """
    first, second, _, _ = philox((seed & WORD, seed >> 32 & WORD), (position & WORD, choice & WORD, 0, 0))
    return first, second


def mix(x: Tensor) -> Tensor:
    """A bijection of 32-bit words, held in int64, in which every input bit flips half of the output bits.

    "lowbias32" of C. Wellons' hash-prospector: shifts 16, 15, 16, multipliers 0x7FEB352D, 0x846CA68B.
    """
    x = (x ^ x >> 16) * 0x7FEB352D & WORD
    x = (x ^ x >> 15) * 0x846CA68B & WORD
    return x ^ x >> 16


def waits(keys: Tensor, size: int, dtype: torch.dtype) -> Tensor:
    """Exponentially distributed waiting times, one for each token of a vocabulary.

    keys: [rows, 2] int64, draw_key of each row. Returns [rows, size] of `dtype`, > 0: −log(1 − u), accurate
    also where u is small, of u = (mix(mix(token ^ first) ^ second) + 1/2) · 2⁻³².
    """
    tokens = torch.arange(size, device=keys.device)
    bits = mix(mix(tokens ^ keys[:, :1]) ^ keys[:, 1:])
    return -torch.log1p((bits.to(dtype) + 0.5) * -(2.0**-32))


def sample(
    logits: Tensor, temperature: Tensor, top_k: Tensor, top_p: Tensor, min_p: Tensor, keys: Tensor
) -> Tensor:
    """Draw one token a row as the winner of an exponential race.

    logits: [rows, vocabulary] float32 (or float64), −inf where a token is forbidden, no NaN, at least one
    finite entry a row; temperature, top_p, min_p: [rows] of the logits' dtype; top_k: [rows] int64;
    keys: [rows, 2] int64, draw_key of each row.
    temperature 0 is argmax (the lowest id among equals). Otherwise, with p = softmax(logits / temperature),
    a token stays iff, in this order,
      top_k > 0: fewer than top_k tokens are strictly likelier than it;
      top_p < 1: those left by top_k that are strictly likelier hold less than top_p of what top_k left;
      min_p > 0: p ≥ min_p · max(p).
    Of those that stay, the one with the greatest p / wait is drawn: with probability p / Σ p, as the first of
    independent exponential clocks (the Gumbel-max trick). Logits that differ by ε, as those of another batch
    do, then change the token with probability about ε; of an inverse CDF they would move every edge by ε,
    past many tokens of a long tail. Returns [rows] int64.
    """
    greedy = logits.argmax(-1)
    below = logits - logits.amax(-1, keepdim=True)
    weights = (below / torch.where(temperature > 0, temperature, 1.0)[:, None]).exp()
    ordered = weights.sort(-1, descending=True).values
    last = torch.where(top_k > 0, top_k, weights.shape[1]).clamp(max=weights.shape[1]) - 1
    floor = ordered.gather(1, last[:, None])
    ordered = ordered.masked_fill(ordered < floor, 0.0)
    before = ordered.cumsum(-1) - ordered
    nucleus = (before < top_p[:, None] * ordered.sum(-1, keepdim=True)) | (top_p >= 1)[:, None]
    nucleus[:, 0] = True
    reach = nucleus.sum(-1, keepdim=True) - 1
    floor = torch.maximum(floor, ordered.gather(1, reach))
    floor = torch.maximum(floor, min_p[:, None])
    race = weights / waits(keys, weights.shape[1], weights.dtype)
    drawn = race.masked_fill(weights < floor, -1.0).argmax(-1)
    return torch.where(temperature > 0, drawn, greedy)
