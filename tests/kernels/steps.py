"""Random steps for attention: blocks in random order, and NaN wherever no sequence has a position."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from kernels.spans import Spans


@dataclass
class Step:
    """One step's attention inputs; `dense` holds each sequence's keys and values [length, kv_heads, dim]."""

    q: Tensor
    keys: Tensor
    values: Tensor
    spans: Spans
    dense: list[tuple[Tensor, Tensor]]

    @property
    def scale(self) -> float:
        return float(self.q.shape[2] ** -0.5)

    def visible(self, index: int) -> Tensor:
        """The causal rule of one sequence: bool [count, length]."""
        count, length = self.spans.counts[index], self.spans.lengths[index]
        return torch.ones(count, length, dtype=torch.bool).tril_(length - count)


def random_step(
    counts: list[int],
    lengths: list[int],
    *,
    heads: int = 9,
    kv_heads: int = 3,
    dim: int = 16,
    block: int = 16,
    dtype: torch.dtype = torch.float64,
    seed: int = 0,
) -> Step:
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)

    needed = [-(-length // block) for length in lengths]
    order = torch.randperm(sum(needed) + 3, generator=generator).tolist()
    pool = torch.full((2, sum(needed) + 3, block, kv_heads, dim), float("nan"), dtype=dtype)
    tables, dense = [], []
    for count, length in zip(needed, lengths, strict=True):
        table = [order.pop() for _ in range(count)]
        pair = normal(2, length, kv_heads, dim)
        for position in range(length):
            pool[:, table[position // block], position % block] = pair[:, position]
        tables.append(table)
        dense.append((pair[0], pair[1]))
    chunks = sum(count > 1 for count in counts)
    spans = Spans(counts=counts, lengths=lengths, blocks=tables, chunks=chunks, block_size=block)
    return Step(normal(sum(counts), heads, dim), pool[0], pool[1], spans, dense)
