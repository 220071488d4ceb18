"""Attention of a step on the CPU: decoding sequences in padded groups, chunks in tiles of queries.

    per step    block tables ──▶ rows of the cache to gather, one index tensor a group or chunk
    per layer   gather keys, values ──▶ scores ──▶ softmax ──▶ mix

The gathered copies live in two buffers that are kept from step to step: fresh ones would be paid for in
page faults, up to eight times the arithmetic.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from kernels.spans import Spans

_QUERY_TILE = 64
_LARGEST_GROUP = 4096


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
    """Prepares the attention of steps; holds the buffers that they share."""

    def __init__(self) -> None:
        self._buffers = Buffers()

    def __call__(self, spans: Spans, kv_heads: int, scale: float, mask: Tensor | None) -> StepAttention:
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
    """Indices in groups that are padded to their longest; members keep their order within a group.

    Padding of up to 1/8, or of 256 positions, costs less than another group's operations. Beyond 4096
    positions a group's keys and values leave the processor's cache between gathering and use.
    """
    groups: list[list[int]] = []
    longest = padding = 0
    for index in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        padding += longest - lengths[index]
        size = longest * (len(groups[-1]) + 1) if groups else 0
        if not groups or size > _LARGEST_GROUP or padding > max(256, size // 8):
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


def _padded(blocks: Sequence[int], used: int, width: int) -> list[int]:
    return [*blocks[:used], *[blocks[0]] * (width - used)]


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
