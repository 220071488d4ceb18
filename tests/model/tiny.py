"""Tiny random models written as Hugging Face folders and as GGUF files, without transformers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from gguf.quants import quantize
from numpy.typing import NDArray
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

LAYERS, HIDDEN, HEADS, KV_HEADS, WIDTH, CONTEXT = 2, 64, 4, 2, 96, 64
EPS = 2.0**-16  # GGUF keeps float32: this one is exact in it
DIM = HIDDEN // HEADS
ALPHABET = sorted(pre_tokenizers.ByteLevel.alphabet())
TOKENS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", *ALPHABET, "he", "ll", "llo", "Ġw"]
MERGES = ["h e", "l l", "ll o", "Ġ w"]
VOCABULARY = len(TOKENS)
CONFIG: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "vocab_size": VOCABULARY,
    "hidden_size": HIDDEN,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
    "num_key_value_heads": KV_HEADS,
    "intermediate_size": WIDTH,
    "rms_norm_eps": EPS,
    "max_position_embeddings": CONTEXT,
    "rope_theta": 10000.0,
    "tie_word_embeddings": False,
    "eos_token_id": 2,
    "bos_token_id": 1,
}
PARTS = {
    "self_attn.q_proj.weight": ("attn_q.weight", (HIDDEN, HIDDEN)),
    "self_attn.k_proj.weight": ("attn_k.weight", (KV_HEADS * DIM, HIDDEN)),
    "self_attn.v_proj.weight": ("attn_v.weight", (KV_HEADS * DIM, HIDDEN)),
    "self_attn.o_proj.weight": ("attn_output.weight", (HIDDEN, HIDDEN)),
    "mlp.gate_proj.weight": ("ffn_gate.weight", (WIDTH, HIDDEN)),
    "mlp.up_proj.weight": ("ffn_up.weight", (WIDTH, HIDDEN)),
    "mlp.down_proj.weight": ("ffn_down.weight", (HIDDEN, WIDTH)),
    "input_layernorm.weight": ("attn_norm.weight", (HIDDEN,)),
    "post_attention_layernorm.weight": ("ffn_norm.weight", (HIDDEN,)),
}
TOP = {
    "model.embed_tokens.weight": ("token_embd.weight", (VOCABULARY, HIDDEN)),
    "model.norm.weight": ("output_norm.weight", (HIDDEN,)),
    "lm_head.weight": ("output.weight", (VOCABULARY, HIDDEN)),
}


def names() -> dict[str, tuple[str, tuple[int, ...]]]:
    """Hugging Face name -> GGUF name and shape, of every tensor."""
    found: dict[str, tuple[str, tuple[int, ...]]] = dict(TOP)
    for layer in range(LAYERS):
        for name, (stored, shape) in PARTS.items():
            found[f"model.layers.{layer}.{name}"] = (f"blk.{layer}.{stored}", shape)
    return found


def weights(seed: int = 0) -> dict[str, NDArray[np.float32]]:
    """Random tensors by Hugging Face name."""
    rng = np.random.default_rng(seed)
    return {name: rng.normal(0, 0.3, shape).astype(np.float32) for name, (_, shape) in names().items()}


def write_folder(folder: Path, tensors: dict[str, NDArray[np.float32]], **changes: Any) -> Path:
    """A Hugging Face folder; a change to None removes a key of config.json."""
    folder.mkdir(parents=True, exist_ok=True)
    config = {key: value for key, value in {**CONFIG, **changes}.items() if value is not None}
    (folder / "config.json").write_text(json.dumps(config))
    save_file({name: torch.tensor(value) for name, value in tensors.items()}, folder / "model.safetensors")
    vocabulary = {token: index for index, token in enumerate(TOKENS)}
    tokenizer = Tokenizer(models.BPE(vocabulary, [tuple(merge.split()) for merge in MERGES]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(TOKENS[:3])
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder


def write_gguf(
    path: Path,
    tensors: dict[str, NDArray[np.float32]],
    *,
    architecture: str = "llama",
    kind: gguf.GGMLQuantizationType = gguf.GGMLQuantizationType.F32,
    extra: dict[str, NDArray[np.float32]] | None = None,
    fields: dict[str, Any] | None = None,
) -> Path:
    """A GGUF file; matrices are stored as `kind`, vectors as F32; `fields` are set last, None removes one."""
    writer = gguf.GGUFWriter(path, architecture)
    values: dict[str, Any] = {
        f"{architecture}.block_count": LAYERS,
        f"{architecture}.context_length": CONTEXT,
        f"{architecture}.embedding_length": HIDDEN,
        f"{architecture}.feed_forward_length": WIDTH,
        f"{architecture}.attention.head_count": HEADS,
        f"{architecture}.attention.head_count_kv": KV_HEADS,
        f"{architecture}.attention.layer_norm_rms_epsilon": EPS,
        f"{architecture}.rope.freq_base": 10000.0,
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "smollm",
        "tokenizer.ggml.tokens": TOKENS,
        "tokenizer.ggml.token_type": [3] * 3 + [1] * (VOCABULARY - 3),
        "tokenizer.ggml.merges": MERGES,
        "tokenizer.ggml.eos_token_id": 2,
        **(fields or {}),
    }
    for key, value in values.items():
        _add(writer, key, value)
    for name, value in tensors.items():
        stored = names()[name][0]
        data = (
            paired(value)
            if architecture == "llama" and stored.endswith(("_q.weight", "_k.weight"))
            else value
        )
        raw = kind if data.ndim == 2 else gguf.GGMLQuantizationType.F32
        writer.add_tensor(stored, quantize(data, raw), raw_dtype=raw)
    for stored, value in (extra or {}).items():
        writer.add_tensor(stored, value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _add(writer: gguf.GGUFWriter, key: str, value: Any) -> None:
    match value:
        case None:
            pass
        case bool():
            writer.add_bool(key, value)
        case int():
            writer.add_uint32(key, value)
        case float():
            writer.add_float32(key, value)
        case str():
            writer.add_string(key, value)
        case _:
            writer.add_array(key, value)


def paired(value: NDArray[np.float32]) -> NDArray[np.float32]:
    """llama.cpp's order of the rows of q and k: the two halves of a head interleaved."""
    count = len(value) // DIM
    halves = value.reshape(count, 2, DIM // 2, -1)
    return np.ascontiguousarray(halves.swapaxes(1, 2)).reshape(value.shape)
