"""What a model of the Llama family is: sizes, switches, rotary scaling; from config.json or GGUF metadata."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from engine.errors import ModelFileError

ARCHITECTURES = {
    "LlamaForCausalLM": "llama",
    "MistralForCausalLM": "mistral",
    "Qwen2ForCausalLM": "qwen2",
    "Qwen3ForCausalLM": "qwen3",
}
GGUF_ARCHITECTURES = ("llama", "qwen2", "qwen3")
ROPE_KINDS = ("default", "linear", "dynamic", "llama3", "yarn")
# Settings of yarn in GGUF files that are not served, with the values that change nothing; -1 means not set.
_GGUF_NEUTRAL = {"yarn_ext_factor": (1.0, -1.0), "yarn_attn_factor": (1.0,), "yarn_log_multiplier": (0.0,)}


@dataclass(frozen=True, slots=True)
class RopeConfig:
    """Rotary embedding. `kind` names the scaling; fields that a kind does not use keep their defaults.

    `dynamic` (NTK) turns positions differently only beyond the model's own context, which is never served:
    it equals `default`. `factors` divide the inverse frequencies one by one (GGUF's rope_freqs tensor).
    """

    base: float = 10000.0
    kind: str = "default"
    factor: float = 1.0
    original_context: int = 0
    low_frequency: float = 1.0
    high_frequency: float = 4.0
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    truncate: bool = True
    attention_factor: float | None = None
    mscale: float | None = None
    mscale_all_dim: float | None = None
    factors: tuple[float, ...] = ()


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """Sizes in elements, `context_length` in tokens.

    A model with a sliding window is served up to the window's length, where the window hides nothing,
    so that its answers are exact.
    """

    architecture: str
    vocab_size: int
    hidden_size: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    intermediate_size: int
    norm_eps: float
    context_length: int
    rope: RopeConfig = RopeConfig()
    tied: bool = False
    qkv_bias: bool = False
    output_bias: bool = False
    mlp_bias: bool = False
    qk_norm: bool = False


class _Fields:
    """Typed reading of a mapping, with errors that name the file and the key."""

    def __init__(self, values: Mapping[str, Any], source: str, prefix: str = "") -> None:
        self.values = values
        self.source = source
        self.prefix = prefix

    def __contains__(self, key: str) -> bool:
        return self.values.get(self.prefix + key) is not None

    def integer(self, key: str, default: int | None = None) -> int:
        value = self.values.get(self.prefix + key)
        if value is None and default is not None:
            return default
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise self.error(key, "a positive integer", value)
        return value

    def number(self, key: str, default: float | None = None) -> float:
        value = self.values.get(self.prefix + key)
        if value is None and default is not None:
            return default
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not value > 0:
            raise self.error(key, "a positive number", value)
        return float(value)

    def optional(self, key: str) -> float | None:
        return self.number(key) if key in self else None

    def flag(self, key: str, default: bool = False) -> bool:
        value = self.values.get(self.prefix + key)
        if value is None:
            return default
        if not isinstance(value, bool):
            raise self.error(key, "true or false", value)
        return value

    def error(self, key: str, wanted: str, value: object) -> ModelFileError:
        found = "it is missing" if value is None else f"found {value!r}"
        return ModelFileError(f"{self.source}: {self.prefix}{key} must be {wanted}, {found}")


def from_hugging_face(values: Mapping[str, Any], source: str) -> ModelConfig:
    """Read a config.json. Raises ModelFileError for an architecture or a setting that is not served."""
    names = values.get("architectures") or [values.get("model_type")]
    name = names[0] if isinstance(names, list) and names else names
    architecture = ARCHITECTURES.get(str(name), str(name))
    if architecture not in ARCHITECTURES.values():
        raise ModelFileError(
            f"{source}: architecture {name!r} is not served; served are {', '.join(sorted(ARCHITECTURES))}"
        )
    fields = _Fields(values, source)
    if values.get("hidden_act", "silu") not in ("silu", "swish"):
        raise fields.error("hidden_act", "silu", values["hidden_act"])
    heads, hidden = fields.integer("num_attention_heads"), fields.integer("hidden_size")
    bias = fields.flag("attention_bias")
    config = ModelConfig(
        architecture=architecture,
        vocab_size=fields.integer("vocab_size"),
        hidden_size=hidden,
        layers=fields.integer("num_hidden_layers"),
        heads=heads,
        kv_heads=fields.integer("num_key_value_heads", heads),
        head_dim=fields.integer("head_dim", hidden // heads),
        intermediate_size=fields.integer("intermediate_size"),
        norm_eps=fields.number("rms_norm_eps"),
        context_length=_context(fields, architecture),
        rope=_hugging_face_rope(fields),
        tied=fields.flag("tie_word_embeddings"),
        qkv_bias=architecture == "qwen2" or bias,
        output_bias=architecture != "qwen2" and bias,
        mlp_bias=architecture == "llama" and fields.flag("mlp_bias"),
        qk_norm=architecture == "qwen3",
    )
    return _checked(config, source)


def _context(fields: _Fields, architecture: str) -> int:
    """Positions served: the model's own, cut to its sliding window if it has one."""
    longest = fields.integer("max_position_embeddings")
    if architecture != "mistral" and not fields.flag("use_sliding_window"):
        return longest
    # A Mistral config that does not mention a window means 4096; null means none.
    unsaid = 4096 if "sliding_window" not in fields.values else longest
    return min(longest, fields.integer("sliding_window", unsaid))


def _hugging_face_rope(fields: _Fields) -> RopeConfig:
    """Both spellings: rope_parameters, or rope_theta beside rope_scaling."""
    raw = fields.values.get("rope_parameters") or fields.values.get("rope_scaling") or {}
    if not isinstance(raw, Mapping):
        raise fields.error("rope_scaling", "a mapping", raw)
    kind = raw.get("rope_type") or raw.get("type") or "default"
    if kind not in ROPE_KINDS:
        raise fields.error("rope_scaling.rope_type", " or ".join(ROPE_KINDS), kind)
    rope = _Fields(raw, fields.source)
    if rope.number("partial_rotary_factor", 1.0) != 1.0:
        raise rope.error("partial_rotary_factor", "1", raw["partial_rotary_factor"])
    base = rope.number("rope_theta") if "rope_theta" in rope else fields.number("rope_theta", 10000.0)
    if kind in ("default", "dynamic"):
        return RopeConfig(base=base)
    longest = fields.integer("max_position_embeddings")
    original = rope.integer("original_max_position_embeddings", longest)
    implied = longest / original if kind == "yarn" else None
    return RopeConfig(
        base=base,
        kind=str(kind),
        factor=rope.number("factor", implied),
        original_context=original,
        low_frequency=rope.number("low_freq_factor", 1.0),
        high_frequency=rope.number("high_freq_factor", 4.0),
        beta_fast=rope.number("beta_fast", 32.0),
        beta_slow=rope.number("beta_slow", 1.0),
        truncate=rope.flag("truncate", True),
        attention_factor=rope.optional("attention_factor"),
        mscale=rope.optional("mscale"),
        mscale_all_dim=rope.optional("mscale_all_dim"),
    )


def from_gguf(
    values: Mapping[str, Any], tensors: frozenset[str], factors: tuple[float, ...], source: str
) -> ModelConfig:
    """Read GGUF metadata: `values` by full key, `tensors` the names in the file, `factors` of rope_freqs.

    Raises ModelFileError for an architecture or a setting that is not served, or a key that is missing.
    """
    architecture = values.get("general.architecture")
    if architecture not in GGUF_ARCHITECTURES:
        served = ", ".join(GGUF_ARCHITECTURES)
        raise ModelFileError(f"{source}: architecture {architecture!r} is not served; served are {served}")
    fields = _Fields(values, source, f"{architecture}.")
    if fields.values.get(f"{architecture}.expert_count"):
        raise ModelFileError(f"{source}: mixture-of-experts models are not served")
    heads, hidden = fields.integer("attention.head_count"), fields.integer("embedding_length")
    head_dim = fields.integer("attention.key_length", hidden // heads)
    rotated = fields.integer("rope.dimension_count", head_dim)
    if rotated != head_dim:
        raise fields.error("rope.dimension_count", f"{head_dim}", rotated)
    vocabulary = values.get("tokenizer.ggml.tokens") or ()
    longest = fields.integer("context_length")
    config = ModelConfig(
        architecture=architecture,
        vocab_size=fields.integer("vocab_size", len(vocabulary)),
        hidden_size=hidden,
        layers=fields.integer("block_count"),
        heads=heads,
        kv_heads=fields.integer("attention.head_count_kv", heads),
        head_dim=head_dim,
        intermediate_size=fields.integer("feed_forward_length"),
        norm_eps=fields.number("attention.layer_norm_rms_epsilon"),
        context_length=min(longest, fields.integer("attention.sliding_window", longest)),
        rope=_gguf_rope(fields, longest, factors),
        tied="output.weight" not in tensors,
        qkv_bias="blk.0.attn_q.bias" in tensors,
        output_bias="blk.0.attn_output.bias" in tensors,
        mlp_bias="blk.0.ffn_gate.bias" in tensors,
        qk_norm="blk.0.attn_q_norm.weight" in tensors,
    )
    return _checked(config, source)


def _gguf_rope(fields: _Fields, longest: int, factors: tuple[float, ...]) -> RopeConfig:
    base = fields.number("rope.freq_base", 10000.0)
    kind = fields.values.get(f"{fields.prefix}rope.scaling.type") or "none"
    if kind not in ("none", "linear", "yarn"):
        raise fields.error("rope.scaling.type", "none, linear or yarn", kind)
    attention = fields.number("rope.scaling.attn_factor", 1.0)
    if kind != "yarn" and attention != 1.0:
        raise fields.error("rope.scaling.attn_factor", "1 unless rope.scaling.type is yarn", attention)
    if kind == "none":
        return RopeConfig(base=base, factors=factors)
    original = fields.integer("rope.scaling.original_context_length", longest)
    factor = fields.number("rope.scaling.factor")
    rope = RopeConfig(base=base, kind=kind, factor=factor, original_context=original, factors=factors)
    return rope if kind == "linear" else _gguf_yarn(fields, rope, attention)


def _gguf_yarn(fields: _Fields, rope: RopeConfig, attention: float) -> RopeConfig:
    """`attention` multiplies the factor that follows from the scaling."""
    for name, neutral in _GGUF_NEUTRAL.items():
        value = fields.values.get(f"{fields.prefix}rope.scaling.{name}")
        if value is not None and value not in neutral:
            raise fields.error(f"rope.scaling.{name}", " or ".join(f"{one:g}" for one in neutral), value)
    usual = 0.1 * math.log(max(rope.factor, 1.0)) + 1.0
    return replace(
        rope,
        beta_fast=fields.number("rope.scaling.yarn_beta_fast", rope.beta_fast),
        beta_slow=fields.number("rope.scaling.yarn_beta_slow", rope.beta_slow),
        attention_factor=None if attention == 1.0 else attention * usual,
    )


def _checked(config: ModelConfig, source: str) -> ModelConfig:
    if config.heads % config.kv_heads:
        raise ModelFileError(
            f"{source}: {config.heads} attention heads cannot share {config.kv_heads} KV heads evenly"
        )
    if config.head_dim % 2:
        raise ModelFileError(f"{source}: an odd head size of {config.head_dim} cannot be rotated")
    count, expected = len(config.rope.factors), config.head_dim // 2
    if count and count != expected:
        raise ModelFileError(f"{source}: rope_freqs.weight has {count} factors, expected {expected}")
    return config
