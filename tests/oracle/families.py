"""Tiny random models in float64 by transformers: a script that writes folders, and the logits they give.

    python -P families.py OUTPUT_FOLDER LENGTH

Writes OUTPUT_FOLDER/<name>/ (config.json, model.safetensors, several shards for one of them) and
OUTPUT_FOLDER/<name>.safetensors (tokens [LENGTH], logits [LENGTH, vocabulary]).
transformers rounds norms to float32 inside; here they are made exact.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, LlamaConfig, MistralConfig, Qwen2Config, Qwen3Config
from transformers.models.llama import modeling_llama
from transformers.models.mistral import modeling_mistral
from transformers.models.qwen2 import modeling_qwen2
from transformers.models.qwen3 import modeling_qwen3

SIZES: dict[str, Any] = {
    "vocab_size": 97,
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
}
YARN = {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0, "original_max_position_embeddings": 64}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 5e5,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
FAMILIES: dict[str, Any] = {
    "llama": LlamaConfig(**SIZES),
    "llama-tied-biased": LlamaConfig(**SIZES, tie_word_embeddings=True, attention_bias=True, mlp_bias=True),
    "llama-multi-query": LlamaConfig(**{**SIZES, "num_key_value_heads": 1}, head_dim=12),
    "llama-linear": LlamaConfig(
        **SIZES, rope_parameters={"rope_type": "linear", "rope_theta": 1e4, "factor": 3.0}
    ),
    "llama-dynamic": LlamaConfig(
        **SIZES, rope_parameters={"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}
    ),
    "llama-llama3": LlamaConfig(**SIZES, rope_parameters=LLAMA3),
    "llama-yarn": LlamaConfig(**SIZES, rope_parameters=YARN),
    "mistral": MistralConfig(**SIZES, sliding_window=None, head_dim=10),
    "mistral-window": MistralConfig(**SIZES, sliding_window=100),
    "qwen2": Qwen2Config(**SIZES, rope_parameters={"rope_type": "default", "rope_theta": 1e6}),
    "qwen2-yarn": Qwen2Config(**SIZES, rope_parameters={**YARN, "mscale": 1.0, "mscale_all_dim": 0.5}),
    "qwen3": Qwen3Config(**SIZES, head_dim=16, tie_word_embeddings=True),
}
SHARDED = "qwen3"


def exact_norm(self: Any, hidden_states: torch.Tensor) -> torch.Tensor:
    scale = torch.rsqrt(hidden_states.pow(2).mean(-1, keepdim=True) + self.variance_epsilon)
    return self.weight * (hidden_states * scale)


modeling_llama.LlamaRMSNorm.forward = exact_norm
modeling_mistral.MistralRMSNorm.forward = exact_norm
modeling_qwen2.Qwen2RMSNorm.forward = exact_norm
modeling_qwen3.Qwen3RMSNorm.forward = exact_norm


@torch.inference_mode()
def write(folder: Path, name: str, config: Any, length: int) -> None:
    generator = torch.Generator().manual_seed(len(name))
    model = AutoModelForCausalLM.from_config(config, attn_implementation="sdpa").to(torch.float64).eval()
    for key, weight in model.named_parameters():
        noise = torch.randn(weight.shape, generator=generator, dtype=torch.float64)
        weight.copy_(1 + 0.2 * noise if "norm" in key else 0.3 * noise)
    tokens = torch.randint(0, config.vocab_size, (length,), generator=generator)
    logits = model(input_ids=tokens[None]).logits[0]
    model.save_pretrained(folder / name, max_shard_size="100KB" if name == SHARDED else "1GB")
    save_file({"tokens": tokens, "logits": logits.contiguous()}, folder / f"{name}.safetensors")


if __name__ == "__main__":
    torch.set_num_threads(1)
    for name, config in FAMILIES.items():
        write(Path(sys.argv[1]), name, config, int(sys.argv[2]))
