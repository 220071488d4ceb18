"""How the tensors of a checkpoint become the packed weights that the transformer runs on.

q, k and v are stacked by rows into one projection, gate and up into another, so that a step reads its input
once for each. Names: embedding, norm, head (if untied), layers.<index>.<field of model.transformer.Layer>.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from kernels.panels import Quantised
from model.config import ModelConfig
from model.gguf_file import GgufFile, Shape
from model.hugging_face import HuggingFaceFolder


class Checkpoint(Protocol):
    """A source of tensors under their Hugging Face names."""

    config: ModelConfig

    def tensor(self, name: str, shape: Shape) -> Tensor:
        """Raises ModelFileError, naming file and tensor, if it is missing or has another shape."""
        ...

    def quantised(self, name: str, shape: Shape) -> Quantised | None:
        """A matrix as quantised numbers, if that is how it is stored. Raises as `tensor`."""
        ...


def _tensor(values: NDArray[Any] | None) -> Any:
    return None if values is None else torch.from_numpy(np.ascontiguousarray(values))


class GgufCheckpoint:
    """Tensors of a GGUF file, float32."""

    def __init__(self, file: GgufFile) -> None:
        self.config = file.config
        self._file = file

    def tensor(self, name: str, shape: Shape) -> Tensor:
        return torch.from_numpy(self._file.array(name, shape))

    def quantised(self, name: str, shape: Shape) -> Quantised | None:
        found = self._file.quantised(name, shape)
        return None if found is None else Quantised(*(_tensor(part) for part in found))


class Entry(Protocol):
    """One tensor of the packed weights."""

    @property
    def name(self) -> str: ...

    def spec(self, checkpoint: Checkpoint) -> tuple[torch.dtype, Shape]:
        """What `build` will give, without building it."""
        ...

    def build(self, checkpoint: Checkpoint) -> Tensor: ...

    def fits(self, tensor: Tensor) -> bool:
        """Whether a tensor that was read has a type and shape that this one may have."""
        ...


@dataclass(frozen=True, slots=True)
class Packed:
    """The rows of its sources, stacked."""

    name: str
    sources: tuple[tuple[str, Shape], ...]
    dtype: torch.dtype = torch.float32

    @property
    def shape(self) -> Shape:
        first = self.sources[0][1]
        return (sum(shape[0] for _, shape in self.sources), *first[1:])

    def spec(self, checkpoint: Checkpoint) -> tuple[torch.dtype, Shape]:
        return self.dtype, self.shape

    def build(self, checkpoint: Checkpoint) -> Tensor:
        parts = [checkpoint.tensor(name, shape).to(self.dtype) for name, shape in self.sources]
        return torch.cat(parts) if len(parts) > 1 else parts[0]

    def fits(self, tensor: Tensor) -> bool:
        return tuple(tensor.shape) == self.shape and tensor.dtype == self.dtype


def recipe(config: ModelConfig, dtype: torch.dtype = torch.float32) -> Iterator[Packed]:
    """Every packed tensor of a model, in file order."""
    for packed in _recipe(config):
        yield replace(packed, dtype=dtype)


def _recipe(config: ModelConfig) -> Iterator[Packed]:
    embedding = (config.vocab_size, config.hidden_size)
    yield Packed("embedding", (("model.embed_tokens.weight", embedding),))
    for index in range(config.layers):
        yield from _layer(config, f"layers.{index}.", f"model.layers.{index}.")
    yield Packed("norm", (("model.norm.weight", (config.hidden_size,)),))
    if not config.tied:
        yield Packed("head", (("lm_head.weight", embedding),))


def _layer(config: ModelConfig, name: str, source: str) -> Iterator[Packed]:
    hidden, width = config.hidden_size, config.intermediate_size
    queries, keys = config.heads * config.head_dim, config.kv_heads * config.head_dim
    attention, mlp = f"{source}self_attn.", f"{source}mlp."
    projections: list[tuple[str, int, list[tuple[str, int]], bool]] = [
        (
            "qkv",
            hidden,
            [(f"{attention}q_proj", queries), (f"{attention}k_proj", keys), (f"{attention}v_proj", keys)],
            config.qkv_bias,
        ),
        ("output", queries, [(f"{attention}o_proj", hidden)], config.output_bias),
        ("gate_up", hidden, [(f"{mlp}gate_proj", width), (f"{mlp}up_proj", width)], config.mlp_bias),
        ("down", width, [(f"{mlp}down_proj", hidden)], config.mlp_bias),
    ]
    yield Packed(f"{name}input_norm", ((f"{source}input_layernorm.weight", (hidden,)),))
    yield Packed(f"{name}mlp_norm", ((f"{source}post_attention_layernorm.weight", (hidden,)),))
    for stem, inputs, parts, biased in projections:
        yield Packed(f"{name}{stem}", tuple((f"{part}.weight", (rows, inputs)) for part, rows in parts))
        if biased:
            yield Packed(f"{name}{stem}_bias", tuple((f"{part}.bias", (rows,)) for part, rows in parts))
    if config.qk_norm:
        yield Packed(f"{name}q_norm", ((f"{attention}q_norm.weight", (config.head_dim,)),))
        yield Packed(f"{name}k_norm", ((f"{attention}k_norm.weight", (config.head_dim,)),))


def open_checkpoint(path: Path) -> Checkpoint:
    """The tensors of what model.files.find_model found. Raises ModelFileError if it is broken."""
    return HuggingFaceFolder(path) if path.is_dir() else GgufCheckpoint(GgufFile(path))
