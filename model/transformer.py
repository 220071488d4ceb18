"""The Llama family's decoder over flattened rows: one file for Llama, Mistral, Qwen2, Qwen3 and SmolLM2."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor
from torch.nn import functional

from kernels.dispatch import Attention, Kernels
from model.config import ModelConfig
from model.kv_cache import KVCache
from model.rope import Rotary


@dataclass(frozen=True, slots=True)
class Layer:
    """Weights of one layer. Projections are [outputs, inputs]; q, k, v are stacked by rows; gate, up too."""

    input_norm: Tensor
    qkv: Tensor
    qkv_bias: Tensor | None
    output: Tensor
    output_bias: Tensor | None
    q_norm: Tensor | None
    k_norm: Tensor | None
    mlp_norm: Tensor
    gate_up: Tensor
    gate_up_bias: Tensor | None
    down: Tensor
    down_bias: Tensor | None


class Transformer:
    """Weights and the forward pass. Rows of a step are positions of any sequences, in any mix."""

    def __init__(self, config: ModelConfig, weights: Mapping[str, Tensor], kernels: Kernels) -> None:
        """`weights`: packed tensors by name, as model.packing names them, all on one device in one dtype."""
        self.config = config
        self._kernels = kernels
        self._embedding = weights["embedding"]
        self._norm = weights["norm"]
        self._head = weights["embedding" if config.tied else "head"]
        self._rotary = Rotary(config, self._embedding.device)
        fields = Layer.__dataclass_fields__
        self._layers = [
            Layer(**{name: weights.get(f"layers.{index}.{name}") for name in fields})  # type: ignore[arg-type]
            for index in range(config.layers)
        ]

    def forward(
        self, tokens: Tensor, positions: Tensor, slots: Tensor, attention: Attention, cache: KVCache
    ) -> Tensor:
        """Compute rows and write their keys and values to the cache.

        tokens, positions, slots: [rows] int64, the slot is where a row's KV goes. Returns the last layer's
        hidden states, [rows, hidden], before the final norm.
        """
        ops, config = self._kernels, self.config
        cos, sin = self._rotary.at(positions)
        residual = functional.embedding(tokens, self._embedding)
        change: Tensor | None = None
        for index, layer in enumerate(self._layers):
            x = self._normed(change, residual, layer.input_norm)
            q, k, v = self._heads(ops.linear(x, layer.qkv, layer.qkv_bias), layer)
            keys, values = cache.layer(index)
            q = ops.rotary_store(q, k, v, cos, sin, keys, values, slots)
            mixed = attention(q, keys, values).view(len(tokens), -1)
            change = ops.linear(mixed, layer.output, layer.output_bias)
            x = ops.add_rms_norm(change, residual, layer.mlp_norm, config.norm_eps)
            x = ops.silu_mul(ops.linear(x, layer.gate_up, layer.gate_up_bias))
            change = ops.linear(x, layer.down, layer.down_bias)
        return residual if change is None else residual.add_(change)

    def logits(self, hidden: Tensor) -> Tensor:
        """Hidden states [rows, hidden] to logits [rows, vocabulary]."""
        x = self._kernels.rms_norm(hidden, self._norm, self.config.norm_eps)
        return self._kernels.linear(x, self._head, None)

    def _normed(self, change: Tensor | None, residual: Tensor, weight: Tensor) -> Tensor:
        if change is None:
            return self._kernels.rms_norm(residual, weight, self.config.norm_eps)
        return self._kernels.add_rms_norm(change, residual, weight, self.config.norm_eps)

    def _heads(self, qkv: Tensor, layer: Layer) -> tuple[Tensor, Tensor, Tensor]:
        """Split [rows, (heads + 2 · kv_heads) · dim] by heads; Qwen3 norms each head of q and k."""
        config = self.config
        heads = qkv.view(len(qkv), -1, config.head_dim)
        q, k, v = heads.split((config.heads, config.kv_heads, config.kv_heads), dim=1)
        if layer.q_norm is not None and layer.k_norm is not None:
            q = self._kernels.rms_norm(q, layer.q_norm, config.norm_eps)
            k = self._kernels.rms_norm(k, layer.k_norm, config.norm_eps)
        return q, k, v
