"""The kernels for one CPU thread, composed of few large torch operations.

At batch sizes of a small server an operation's fixed cost (2–5 µs) and the page faults of fresh large
buffers cost more than arithmetic: so operations are few, and gathered keys and values land in buffers that
are kept. `kernels.reference` defines what each function computes, shapes and all.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from kernels.spans import Spans

_QUERY_TILE = 64
_NARROW = 4


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x [rows, inputs] · weight [outputs, inputs] ᵀ + bias.

    Up to four float32 rows go the other way round, weight · xᵀ, which streams the weights 1.3–2 times faster;
    a single row is doubled, because two columns take less time than one.
    """
    rows = x.shape[0]
    if rows > _NARROW or x.dtype != torch.float32:
        return functional.linear(x, weight, bias)
    columns = x.t() if rows > 1 else x.repeat(2, 1).t()
    out = torch.mm(weight, columns).t()[:rows]
    return out.contiguous() if bias is None else out + bias


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


class Buffers:
    """Two buffers for gathered keys and values, kept from step to step and grown when needed."""

    def __init__(self) -> None:
        self._held = torch.empty(2, 0)

    def take(self, rows: int, dim: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Two contiguous tensors [rows, dim] with any content, valid until the next call."""
        size = rows * dim
        if self._held.dtype != dtype or self._held.shape[1] < size:
            self._held = torch.empty(2, size + size // 2, dtype=dtype)
        keys, values = self._held[0, :size], self._held[1, :size]
        return keys.view(rows, dim), values.view(rows, dim)


class Attention:
    """Prepares the attention of a step, then runs it in every layer."""

    def __init__(self) -> None:
        self._buffers = Buffers()

    def __call__(self, spans: Spans, kv_heads: int, scale: float, mask: Tensor | None = None) -> StepAttention:
        return StepAttention(spans, kv_heads, scale, mask, self._buffers)


class StepAttention:
    """One step: each chunk by itself, the decoding sequences in groups of similar length."""

    def __init__(
        self, spans: Spans, kv_heads: int, scale: float, mask: Tensor | None, buffers: Buffers
    ) -> None:
        self._parts: list[_Chunk | _Group] = []
        row = 0
        for index in range(spans.chunks):
            count, length = spans.counts[index], spans.lengths[index]
            seen = None if mask is None else mask[row : row + count, :length]
            rows = _cache_rows(spans, [index], length, kv_heads)
            self._parts.append(_Chunk(row, count, length, rows, scale, seen, buffers))
            row += count
        decodes = range(spans.chunks, len(spans.counts))
        for members in group_by_length([spans.lengths[i] for i in decodes]):
            indices = [spans.chunks + member for member in members]
            lengths = [spans.lengths[i] for i in indices]
            rows = _cache_rows(spans, indices, max(lengths), kv_heads)
            whole = not row and len(members) == len(decodes)
            picked = None if whole else torch.tensor([row + member for member in members])
            self._parts.append(_Group(picked, lengths, rows, kv_heads, scale, buffers))

    def __call__(self, q: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        out = torch.empty_like(q)
        for part in self._parts:
            part.attend(q, keys.view(-1, q.shape[2]), values.view(-1, q.shape[2]), out)
        return out


def group_by_length(lengths: list[int]) -> list[list[int]]:
    """Indices in groups that are padded to their longest: padding of up to 1/8 or 256 positions is cheaper
    than another group's operations. Members keep their order within a group."""
    groups: list[list[int]] = []
    longest = padding = 0
    for index in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        padding += longest - lengths[index]
        if not groups or padding > max(256, longest * (len(groups[-1]) + 1) // 8):
            groups.append([])
            longest, padding = lengths[index], 0
        groups[-1].append(index)
    return [sorted(group) for group in groups]


def _cache_rows(spans: Spans, indices: list[int], longest: int, kv_heads: int) -> Tensor:
    """Rows of [slots · kv_heads, dim] in the order sequence, KV head, position: int64, flat.

    A shorter sequence is padded with its own first position, so that no other request's data is read.
    """
    size = spans.block_size
    width = -(-longest // size)
    tables = [_padded(spans.blocks[i], -(-spans.lengths[i] // size), width) for i in indices]
    slots = (torch.tensor(tables)[:, :, None] * size + torch.arange(size)).flatten(1)[:, :longest]
    lengths = torch.tensor([spans.lengths[i] for i in indices])
    slots = torch.where(torch.arange(longest) < lengths[:, None], slots, slots[:, :1])
    return (slots[:, None, :] * kv_heads + torch.arange(kv_heads)[None, :, None]).flatten()


def _padded(blocks: object, used: int, width: int) -> list[int]:
    kept = list(blocks)[:used]  # type: ignore[call-overload]
    return kept + [kept[0]] * (width - used)


class _Group:
    """Decoding sequences padded to one length: a batched product over their gathered keys and values."""

    def __init__(
        self,
        picked: Tensor | None,
        lengths: list[int],
        rows: Tensor,
        kv_heads: int,
        scale: float,
        buffers: Buffers,
    ) -> None:
        self._picked = picked
        self._rows = rows
        self._shape = (len(lengths) * kv_heads, max(lengths))
        self._scale = scale
        self._buffers = buffers
        self._hidden: Tensor | None = None
        if min(lengths) < max(lengths):
            hidden = torch.arange(max(lengths)) >= torch.tensor(lengths)[:, None]
            self._hidden = hidden.repeat_interleave(kv_heads, dim=0)[:, None, :]

    def attend(self, q: Tensor, keys: Tensor, values: Tensor, out: Tensor) -> None:
        (batch, length), dim = self._shape, q.shape[2]
        k, v = self._buffers.take(len(self._rows), dim, keys.dtype)
        torch.index_select(keys, 0, self._rows, out=k)
        torch.index_select(values, 0, self._rows, out=v)
        mine = q if self._picked is None else q.index_select(0, self._picked)
        grouped = mine.view(batch, -1, dim)
        scores = torch.bmm(grouped * self._scale, k.view(batch, length, dim).transpose(1, 2))
        if self._hidden is not None:
            scores.masked_fill_(self._hidden, float("-inf"))
        mixed = torch.bmm(scores.softmax(-1), v.view(batch, length, dim)).view(mine.shape)
        if self._picked is None:
            out.copy_(mixed)
        else:
            out.index_copy_(0, self._picked, mixed)


class _Chunk:
    """The chunk of one sequence: tiles of queries against the keys up to the tile's end.

    Tiles save the half of the products that the causal rule hides and keep scores in the cache: a chunk of
    512 without prefix takes 0.6 of the time of one masked product over everything.
    """

    def __init__(
        self,
        first: int,
        count: int,
        length: int,
        rows: Tensor,
        scale: float,
        mask: Tensor | None,
        buffers: Buffers,
    ) -> None:
        self._first = first
        self._count = count
        self._length = length
        self._rows = rows
        self._scale = scale
        self._mask = mask
        self._buffers = buffers

    def attend(self, q: Tensor, keys: Tensor, values: Tensor, out: Tensor) -> None:
        heads, dim = q.shape[1:]
        kv_heads = len(self._rows) // self._length
        group = heads // kv_heads
        k, v = self._buffers.take(len(self._rows), dim, keys.dtype)
        k = torch.index_select(keys, 0, self._rows, out=k).view(kv_heads, self._length, dim)
        v = torch.index_select(values, 0, self._rows, out=v).view(kv_heads, self._length, dim)
        last = self._first + self._count
        queries = q[self._first : last].view(-1, kv_heads, group, dim)
        target = out[self._first : last].view(-1, kv_heads, group, dim)
        prefix = self._length - self._count
        for start in range(0, self._count, _QUERY_TILE):
            stop = min(start + _QUERY_TILE, self._count)
            tile = (queries[start:stop] * self._scale).permute(1, 2, 0, 3)
            seen = self._length if self._mask is not None else prefix + stop
            scores = torch.bmm(tile.reshape(kv_heads, -1, dim), k[:, :seen].transpose(1, 2))
            self._hide(scores.view(kv_heads, group, stop - start, seen), start, stop)
            mixed = torch.bmm(scores.softmax(-1), v[:, :seen])
            target[start:stop] = mixed.view(kv_heads, group, stop - start, dim).permute(2, 0, 1, 3)

    def _hide(self, scores: Tensor, start: int, stop: int) -> None:
        """Set what the tile's rows must not see to −inf: without a mask, a triangle at the end."""
        if self._mask is not None:
            scores.masked_fill_(~self._mask[start:stop], float("-inf"))
            return
        later = torch.ones(stop - start, stop - start, dtype=torch.bool).triu_(1)
        scores[..., start - stop :].masked_fill_(later, float("-inf"))


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


def sample(
    logits: Tensor, temperature: Tensor, top_k: Tensor, top_p: Tensor, min_p: Tensor, uniforms: Tensor
) -> Tensor:
    tokens = logits.argmax(-1)
    settings = zip(
        temperature.tolist(), top_k.tolist(), top_p.tolist(), min_p.tolist(), uniforms.tolist(), strict=True
    )
    for row, (heat, k, p, least, uniform) in enumerate(settings):
        if heat > 0:
            tokens[row] = _draw(logits[row], heat, k, p, least, uniform)
    return tokens


def _draw(logits: Tensor, heat: float, k: int, p: float, least: float, uniform: float) -> Tensor:
    """One row by itself: no result depends on which rows it shares a batch with."""
    weights = (logits - logits.max()).div_(heat).exp_()
    floor = max(least, _nucleus_floor(weights, k, p)) if k > 0 or p < 1 else least
    if floor > 0:
        kept = (weights >= floor).nonzero().view(-1)
        mass = weights[kept].cumsum(0)
    else:
        kept = None
        mass = weights.cumsum(0)
    last = torch.searchsorted(mass, mass[-1])
    place = torch.searchsorted(mass, uniform * mass[-1], right=True).clamp_(max=last)
    return place if kept is None else kept[place]


def _nucleus_floor(weights: Tensor, k: int, p: float) -> float:
    """The least weight that top-k and top-p leave.

    Without top-k, the likeliest 64 tokens are tried first and eight times as many each time that they
    hold less than p: sorting a vocabulary of 49,152 costs 40 times as much as its first 64.
    """
    size = len(weights)
    most = k if 0 < k < size else size
    floor = 0.0
    total = weights.sum()
    if most < size:
        floor = float(weights.topk(most).values[-1])
        total = weights[weights >= floor].sum()
    if p >= 1:
        return floor
    tried = min(64, size)
    while True:
        likeliest = weights.topk(tried).values
        before = likeliest.cumsum(0) - likeliest
        inside = int((before < p * total).sum())
        if inside < tried or tried == size:
            return max(floor, float(likeliest[max(inside, 1) - 1]))
        tried = min(8 * tried, size)
