"""Steps in one call of the compiled CPU kernels each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from engine.plan import Work
from kernels import library, native
from model.config import ModelConfig
from model.kv_cache import KVCache
from model.rope import inverse_frequencies

_DTYPES = (torch.float32, torch.bfloat16)


def obstacle(config: ModelConfig, dtype: torch.dtype) -> str | None:
    """Why the compiled kernels do not serve a model here; None if they do."""
    if dtype not in _DTYPES:
        return f"they compute in float32 and bfloat16, not {dtype}"
    if not native.suits(_shape(config)):
        return "the model's sizes are not multiples of theirs: inputs of 32, heads of 16"
    return library.obstacle()


class CompiledDecoder:
    """Computes works. Each row's logits are the same bits in any batch, chunk and block table."""

    def __init__(
        self,
        config: ModelConfig,
        weights: Mapping[str, Tensor],
        cache: KVCache,
        threads: int,
        *,
        rounded: bool = False,
    ) -> None:
        """weights: as model.panel_packing gives them for the dtype of the cache; rounded: as for
        native.Decoder."""
        frequencies, magnitude = inverse_frequencies(config.rope, config.head_dim)
        shape = _shape(config, magnitude)
        self._decoder = native.Decoder(
            shape, weights, frequencies.contiguous(), cache.pool, threads, rounded=rounded
        )

    def logits(self, works: Sequence[Work], wanted: Sequence[int]) -> Tensor:
        """Compute works; the logits of the last wanted[i] positions of each, [their sum, vocabulary]."""
        tokens: list[int] = []
        rows: list[int] = []
        for work, count in zip(works, wanted, strict=True):
            tokens.extend(work.tokens)
            rows.extend(range(len(tokens) - count, len(tokens)))
        counts = [len(work.tokens) for work in works]
        lengths = [work.start + len(work.tokens) for work in works]
        return self._decoder.forward(tokens, counts, lengths, [work.blocks for work in works], rows)


def _shape(config: ModelConfig, magnitude: float = 1.0) -> native.Shape:
    return native.Shape(
        layers=config.layers,
        hidden=config.hidden_size,
        width=config.intermediate_size,
        vocabulary=config.vocab_size,
        heads=config.heads,
        kv_heads=config.kv_heads,
        dim=config.head_dim,
        eps=config.norm_eps,
        magnitude=magnitude,
    )
