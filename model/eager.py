"""Steps as torch operations, on any device: a transformer, its cache, and how works become rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from engine.plan import Work
from kernels.dispatch import Kernels
from kernels.spans import Spans
from model.config import ModelConfig
from model.kv_cache import KVCache
from model.transformer import Transformer


class EagerDecoder:
    """Computes works operation by operation."""

    def __init__(
        self, config: ModelConfig, weights: Mapping[str, Tensor], kernels: Kernels, cache: KVCache
    ) -> None:
        """weights: packed tensors by name, as model.packing names them, on the cache's device."""
        self._config = config
        self._kernels = kernels
        self._cache = cache
        self._device = cache.pool.device
        self.transformer = Transformer(config, weights, kernels)

    def logits(self, works: Sequence[Work], wanted: Sequence[int]) -> Tensor:
        """Compute works; the logits of the last wanted[i] positions of each, [their sum, vocabulary]."""
        hidden, ends = self._forward(works)
        rows = [row for end, count in zip(ends, wanted, strict=True) for row in range(end - count, end)]
        if rows != list(range(len(hidden))):
            hidden = hidden.index_select(0, self._integers(rows))
        return self.transformer.logits(hidden)

    def _forward(self, works: Sequence[Work]) -> tuple[Tensor, list[int]]:
        """Hidden states of all rows, and where each work's rows end: chunks come before decodes."""
        order = sorted(range(len(works)), key=lambda index: len(works[index].tokens) == 1)
        numbers = np.empty((3, sum(len(work.tokens) for work in works)), dtype=np.int64)
        tokens, positions, slots = numbers
        ends = [0] * len(works)
        size, end = self._cache.layout.block_size, 0
        for index in order:
            work = works[index]
            begin, end = end, end + len(work.tokens)
            reach = np.arange(work.start, work.start + len(work.tokens))
            first = work.start // size
            blocks = np.asarray(work.blocks[first : int(reach[-1]) // size + 1])
            tokens[begin:end] = work.tokens
            positions[begin:end] = reach
            slots[begin:end] = blocks[reach // size - first] * size + reach % size
            ends[index] = end
        ordered = [works[index] for index in order]
        spans = Spans(
            counts=[len(work.tokens) for work in ordered],
            lengths=[work.start + len(work.tokens) for work in ordered],
            blocks=[work.blocks for work in ordered],
            chunks=sum(len(work.tokens) > 1 for work in ordered),
            block_size=size,
        )
        scale = self._config.head_dim**-0.5
        attention = self._kernels.attention(spans, self._config.kv_heads, scale, None)
        # One copy for all three: each waits for the one before it, and the device for the host.
        inputs = torch.from_numpy(numbers).to(self._device)
        hidden = self.transformer.forward(inputs[0], inputs[1], inputs[2], attention, self._cache)
        return hidden, ends

    def _integers(self, values: list[int]) -> Tensor:
        return torch.tensor(values, dtype=torch.int64).to(self._device)
