"""Random tiny models of each architecture agree with transformers in float64, in chunks or whole."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from engine.plan import Work
from model import rope
from model.runner import ModelRunner

LENGTH = 100
FAMILIES = (
    "llama", "llama-tied-biased", "llama-multi-query", "llama-linear", "llama-dynamic", "llama-llama3",
    "llama-yarn", "mistral", "mistral-window", "qwen2", "qwen2-yarn", "qwen3",
)  # fmt: skip
TOLERANCE = 1e-9


@pytest.fixture(scope="module")
def families(oracle: Callable[..., None], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("families")
    oracle("families.py", folder, LENGTH)
    for name in FAMILIES:
        (folder / name / "tokenizer.json").write_text("{}")
    return folder


def open_runner(folder: Path, block_size: int = 16) -> ModelRunner:
    return ModelRunner(folder, dtype="float64", blocks=3 * LENGTH // block_size, block_size=block_size)


def chunked(runner: ModelRunner, tokens: list[int], chunk: int) -> Tensor:
    """Logits of all positions, computed `chunk` positions a step, in blocks that lie in random order."""
    size = runner.kv.layout.block_size
    blocks = random.Random(chunk).sample(range(runner.kv.blocks), -(-len(tokens) // size))
    parts = []
    for start in range(0, len(tokens), chunk):
        parts.append(runner.logits([Work("a", 0, tokens[start : start + chunk], start, blocks)]))
    return torch.cat(parts)


def distance(folder: Path, name: str, chunk: int, block_size: int = 16) -> float:
    expected = load_file(folder / f"{name}.safetensors")
    ours = chunked(open_runner(folder / name, block_size), expected["tokens"].tolist(), chunk)
    return float((ours - expected["logits"]).abs().max())


@pytest.mark.parametrize("name", FAMILIES)
def test_logits_are_those_of_transformers(families: Path, name: str) -> None:
    assert distance(families, name, LENGTH) < TOLERANCE


@pytest.mark.parametrize("chunk", [1, 7, 16, 64])
@pytest.mark.parametrize("name", ["llama", "qwen3"])
def test_chunks_change_nothing(families: Path, name: str, chunk: int) -> None:
    assert distance(families, name, chunk) < TOLERANCE


@pytest.mark.parametrize("block_size", [1, 3, 8, 32])
def test_the_block_size_changes_nothing(families: Path, block_size: int) -> None:
    assert distance(families, "mistral", 7, block_size) < TOLERANCE


def test_a_window_bounds_the_context(families: Path) -> None:
    assert open_runner(families / "mistral-window").config.context_length == 100


@pytest.mark.parametrize("name", ["llama-linear", "llama-llama3", "llama-yarn"])
def test_another_rotary_scaling_is_noticed(
    families: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = rope.inverse_frequencies
    monkeypatch.setattr(rope, "inverse_frequencies", lambda config, dim: (right(config, dim)[0] * 1.001, 1.0))
    assert distance(families, name, LENGTH) > 1e-3


def test_positions_counted_from_the_chunk_are_noticed(
    families: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = rope.Rotary.at
    monkeypatch.setattr(rope.Rotary, "at", lambda self, positions: right(self, positions - positions[0]))
    assert distance(families, "llama", LENGTH) < TOLERANCE
    assert distance(families, "llama", 16) > 1e-3
