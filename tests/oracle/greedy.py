"""Greedy tokens of the embedded model by transformers: a script that writes tests/data/greedy_smollm2.json.

    python -P greedy.py MODEL.gguf PROMPTS.json OUTPUT.json

The weights are the file's own, dequantised by the gguf library; the tokenizer is transformers' reading of the
same file, corrected to split digits one by one as the model was trained. Each step also records the gap
between the two highest logits, by which a comparison knows where a tie may fall either way.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import gguf
import torch
from gguf.quants import dequantize
from tokenizers import pre_tokenizers
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

LENGTH = 64
NAMES = {
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
TOP = {"token_embd": "model.embed_tokens", "output_norm": "model.norm"}


def load_model(path: Path) -> LlamaForCausalLM:
    reader = gguf.GGUFReader(path)

    def value(key: str) -> Any:
        return reader.fields[f"llama.{key}"].contents()

    heads, kv_heads = value("attention.head_count"), value("attention.head_count_kv")
    config = LlamaConfig(
        vocab_size=value("vocab_size"),
        hidden_size=value("embedding_length"),
        intermediate_size=value("feed_forward_length"),
        num_hidden_layers=value("block_count"),
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        rms_norm_eps=value("attention.layer_norm_rms_epsilon"),
        max_position_embeddings=value("context_length"),
        rope_parameters={"rope_type": "default", "rope_theta": value("rope.freq_base")},
        tie_word_embeddings=True,
        attn_implementation="eager",
    )
    state = {}
    for tensor in reader.tensors:
        weight = torch.tensor(dequantize(tensor.data, tensor.tensor_type), dtype=torch.float32)
        stem = tensor.name.removesuffix(".weight")
        if stem in TOP:
            state[f"{TOP[stem]}.weight"] = weight
            continue
        _, index, kind = stem.split(".")
        if kind in ("attn_q", "attn_k"):
            count = heads if kind == "attn_q" else kv_heads
            rows, columns = weight.shape
            weight = weight.view(count, rows // count // 2, 2, columns).transpose(1, 2).reshape(rows, columns)
        state[f"model.layers.{index}.{NAMES[kind]}.weight"] = weight
    state["lm_head.weight"] = state["model.embed_tokens.weight"]
    model = LlamaForCausalLM(config)
    model.load_state_dict(state)
    return model.float().eval()


def load_tokenizer(path: Path) -> Any:
    tokenizer = AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
    backend = tokenizer.backend_tokenizer
    digits = pre_tokenizers.Digits(individual_digits=True)
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [digits, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)]
    )
    return tokenizer


@torch.inference_mode()
def generate(model: LlamaForCausalLM, prompt: list[int]) -> tuple[list[int], list[float]]:
    tokens: list[int] = []
    gaps: list[float] = []
    past, fed = None, prompt
    for _ in range(LENGTH):
        output = model(input_ids=torch.tensor([fed]), past_key_values=past, use_cache=True)
        past = output.past_key_values
        best = output.logits[0, -1].topk(2)
        tokens.append(int(best.indices[0]))
        gaps.append(round(float(best.values[0] - best.values[1]), 6))
        fed = tokens[-1:]
    return tokens, gaps


def main(model_path: Path, prompts: Path, output: Path) -> None:
    torch.set_num_threads(1)
    model, tokenizer = load_model(model_path), load_tokenizer(model_path)
    answers = []
    for item in json.loads(prompts.read_text()):
        prompt = tokenizer(item["text"], add_special_tokens=False)["input_ids"]
        tokens, gaps = generate(model, prompt)
        answers.append({"id": item["id"], "prompt": prompt, "tokens": tokens, "gaps": gaps})
    lines = ",\n".join(json.dumps(answer) for answer in answers)
    output.write_text(f"[\n{lines}\n]\n")


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:4]))
