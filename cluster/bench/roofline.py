"""How long a step would take if the machine did nothing but what it must: read weights and KV, and multiply.

    decode    max((weights + KV of every sequence) / bandwidth, products / arithmetic)
    prefill   max(weights / bandwidth, products / arithmetic)

The roofline of Williams et al. (CACM 2009), with the roofs measured in the same run (model/bench.py).
"""

from __future__ import annotations

from cluster.bench.statistics import Value


class Roofs(Value):
    """What the processor reaches: bytes and operations (a product and a sum are two) a second."""

    bandwidth: float
    bfloat16: float
    float32: float
    int8: float

    def arithmetic(self, dtype: str) -> float:
        """Operations a second on numbers of a type; float64 counts as float32.

        A bfloat16 is a float32 too: where the processor has no products of the one, those of the other count.
        """
        return max(self.bfloat16, self.float32) if dtype in ("bfloat16", "float16") else self.float32

    def higher(self, other: Roofs) -> Roofs:
        """The better of two measurements, roof by roof: what else runs only makes them worse."""
        return Roofs(
            bandwidth=max(self.bandwidth, other.bandwidth),
            bfloat16=max(self.bfloat16, other.bfloat16),
            float32=max(self.float32, other.float32),
            int8=max(self.int8, other.int8),
        )


class Shape(Value):
    """What decides the cost of a step: a transformer's sizes, and the bytes that it reads.

    It computes in `dtype` with weights kept in `weights` (float32, bfloat16, 4-bit …), and in its layers'
    products with `activations` as model.activations has them. `weight_bytes` is what
    every step reads: of an embedding that is not the head too, rows only. `kv_bytes` is of a token in all
    layers.
    """

    dtype: str
    weights: str
    layers: int
    hidden: int
    intermediate: int
    heads: int
    kv_heads: int
    head_dim: int
    vocabulary: int
    weight_bytes: int
    kv_bytes: int
    activations: str = "auto"

    @property
    def layer_weights(self) -> int:
        """Weights of all layers' matrices."""
        attention = self.hidden * self.head_dim * (2 * self.heads + 2 * self.kv_heads)
        return self.layers * (attention + 3 * self.hidden * self.intermediate)

    @property
    def head_weights(self) -> int:
        return self.vocabulary * self.hidden

    def decode_limit(self, batch: int, context: int, roofs: Roofs) -> float:
        """Seconds of a decode step at best: `batch` sequences that each attend to `context` positions."""
        moved = self.weight_bytes + batch * context * self.kv_bytes
        attended = 2 * batch * context * self.heads * self.head_dim * self.layers
        rest = batch * self.head_weights + attended
        return max(moved / roofs.bandwidth, self._computing(batch * self.layer_weights, rest, roofs))

    def prefill_limit(self, tokens: int, roofs: Roofs) -> float:
        """Seconds of a step at best that reads a prompt of `tokens` and draws its first answer token."""
        attended = tokens * (tokens + 1) * self.heads * self.head_dim * self.layers
        computing = self._computing(tokens * self.layer_weights, self.head_weights + attended, roofs)
        return max(self.weight_bytes / roofs.bandwidth, computing)

    def _computing(self, layers: int, rest: int, roofs: Roofs) -> float:
        """Seconds for so many products of the layers' weights, and for those of the head and of attention."""
        arithmetic = roofs.arithmetic(self.dtype)
        whole = max(roofs.int8, arithmetic) if self.activations == "int8" else arithmetic
        return 2 * (layers / whole + rest / arithmetic)
