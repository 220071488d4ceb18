"""A decode step on buffers that never move: the form that a CUDA graph can record.

    host                       one copy            device, recorded once for each size
    numbers of every row ─▶ pinned ─▶ numbers ─▶ embed · layers · head · sample ─▶ drawn
    block tables ──────────▶ what changed ─▶ table ──────────┘      ▲                │
                                                                    └─── fed ────────┘

Row i is one sequence's one new token. The rows beyond those of a step pad it: their slot is −1, so that they
write nowhere, and their length 0, so that they read nothing. A row that is `fed` takes for its token what a
row of the step before drew, which the host need not know yet.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from engine.plan import Draw, Work
from engine.request import Sampling
from kernels.dispatch import Kernels
from kernels.reference import wide
from model.block_rows import BlockRows
from model.draw_keys import draw_keys
from model.kv_cache import KVCache
from model.sampler import cleaned
from model.transformer import Transformer

_TOKEN, _POSITION, _SLOT, _LENGTH, _FED, _TOP_K, _KEY, _KEY_2, _TEMPERATURE, _TOP_P, _MIN_P = range(11)
_GREEDY = Sampling(max_tokens=1, temperature=0.0)


class StaticStep:
    """Buffers for `rows` rows whose tables have at most `width` blocks, and the computation on them."""

    def __init__(
        self, transformer: Transformer, kernels: Kernels, cache: KVCache, dtype: torch.dtype, rows: int
    ) -> None:
        """dtype: that of the activations. Everything is on the device of the cache."""
        device, config = cache.pool.device, transformer.config
        self.rows = rows
        self.width = min(cache.blocks, -(-config.context_length // cache.layout.block_size))
        self.device = device
        self._transformer, self._kernels, self._cache = transformer, kernels, cache
        self._scale = config.head_dim**-0.5
        self._size = cache.layout.block_size
        self._host = torch.zeros(11, rows, dtype=torch.int64, pin_memory=device.type == "cuda")
        self._integers: NDArray[np.int64] = self._host.numpy()
        self._floats: NDArray[np.float64] = self._integers[_TEMPERATURE:].view(np.float64)
        self._numbers = torch.zeros(11, rows, dtype=torch.int64, device=device)
        self._tables = BlockRows(rows, self.width, device)
        self.drawn = torch.zeros(rows, dtype=torch.int64, device=device)
        self.logits = torch.zeros(rows, config.vocab_size, dtype=wide(dtype), device=device)
        self.fill((), ())

    def fill(self, works: Sequence[Work], fed: Sequence[int]) -> None:
        """Queue the copies of a step's numbers; the copies of the call before must be done.

        works: one token each, at most `rows`; fed: the row of the step before whose draw is each work's
        token, −1 where the work has its token, or empty if all have.
        """
        integers, floats, count = self._integers, self._floats, len(works)
        size = self._size
        starts = [work.start for work in works]
        integers[_TOKEN, :count] = [work.tokens[0] for work in works]
        integers[_POSITION, :count] = starts
        integers[_SLOT, :count] = [
            work.blocks[work.start // size] * size + work.start % size for work in works
        ]
        integers[_LENGTH, :count] = [start + 1 for start in starts]
        integers[_FED, :count] = fed if len(fed) else -1
        self._fill_draws([work.draw for work in works], count)
        integers[:_TEMPERATURE, count:] = 0
        integers[_SLOT, count:] = integers[_FED, count:] = -1
        floats[:, count:] = 0.0
        self._tables.update([work.blocks for work in works])
        self._numbers.copy_(self._host, non_blocking=True)

    def _fill_draws(self, draws: Sequence[Draw | None], count: int) -> None:
        settings = [_GREEDY if draw is None else draw.sampling for draw in draws]
        self._floats[0, :count] = [sampling.temperature for sampling in settings]
        self._floats[1, :count] = [sampling.top_p for sampling in settings]
        self._floats[2, :count] = [sampling.min_p for sampling in settings]
        self._integers[_TOP_K, :count] = [max(sampling.top_k, 0) for sampling in settings]
        chance = [row for row, sampling in enumerate(settings) if sampling.temperature > 0]
        if chance:
            names = [
                (one.sampling.seed, one.choices[0], one.position) for row in chance if (one := draws[row])
            ]
            self._integers[_KEY : _KEY_2 + 1, chance] = draw_keys(names)

    def compute(self, count: int) -> None:
        """The step of the first `count` rows, on the buffers alone: `drawn` and `logits` are its results."""
        numbers, kernels = self._numbers[:, :count], self._kernels
        fed = numbers[_FED]
        tokens = torch.where(fed >= 0, self.drawn[fed.clamp(min=0)], numbers[_TOKEN])
        lengths, table = numbers[_LENGTH].to(torch.int32), self._tables.table[:count]

        def attention(q: Tensor, keys: Tensor, values: Tensor) -> Tensor:
            return kernels.paged_attention(q, keys, values, table, lengths, self._scale)

        hidden = self._transformer.forward(tokens, numbers[_POSITION], numbers[_SLOT], attention, self._cache)
        logits = self.logits[:count]
        logits.copy_(cleaned(self._transformer.logits(hidden).to(logits.dtype)))
        temperature, top_p, min_p = numbers[_TEMPERATURE:].view(torch.float64).to(logits.dtype)
        keys = numbers[_KEY : _KEY_2 + 1].t().contiguous()
        self.drawn[:count].copy_(kernels.sample(logits, temperature, numbers[_TOP_K], top_p, min_p, keys))
