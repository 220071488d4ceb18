"""Loads a model's weights in the form that its decoder takes, shared between processes or private."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from kernels.panels import panel_bytes
from model.assets import Assets
from model.cache_folder import CacheFolder
from model.config import ModelConfig
from model.packed_cache import Progress, build_private, cache_key, load_shared
from model.packing import Entry, open_checkpoint, recipe
from model.panel_packing import panel_recipe

WEIGHTS = ("auto", "dense")


@dataclass(frozen=True, slots=True)
class Weights:
    """Packed tensors by name. `format`: float32, bfloat16 …, or 4-bit, 8-bit: what the layers are kept in."""

    tensors: dict[str, Tensor]
    format: str

    def has_4_bits(self, config: ModelConfig, dtype: torch.dtype) -> bool:
        """Whether any matrix of the layers is kept in 4 bits, in panels for `dtype`."""
        inputs = {
            "qkv": config.hidden_size,
            "output": config.heads * config.head_dim,
            "gate_up": config.hidden_size,
            "down": config.intermediate_size,
        }
        return any(
            tensor.dtype == torch.uint8 and tensor.shape[1] == panel_bytes("4 bits", inputs[stem], dtype)
            for name, tensor in self.tensors.items()
            if name.startswith("layers.") and (stem := name.rpartition(".")[2]) in inputs
        )


def load(
    assets: Assets,
    dtype: torch.dtype,
    cache: Path | None,
    progress: Progress,
    *,
    panels: bool,
    dense: bool,
) -> Weights:
    """Weights for products in `dtype`: in panels for the compiled kernels, else as rows, always dense.

    cache: the folder in which instances share them, None for private memory. Raises SetupError if it cannot
    be used, ModelFileError for a broken model.
    """
    config = assets.config
    entries: list[Entry]
    if panels:
        entries, form = (
            list(panel_recipe(config, dtype, dense=dense)),
            "-dense-panels" if dense else "-panels",
        )
    else:
        entries, form = list(recipe(config, dtype)), ""
    if cache is None:
        tensors = build_private(entries, open_checkpoint(assets.path), progress)
    else:
        key = cache_key(assets.digest, dtype, form)
        tensors = load_shared(
            CacheFolder(cache), key, entries, lambda: open_checkpoint(assets.path), progress
        )
    return Weights(tensors, _format(tensors["layers.0.down"], config.intermediate_size, dtype))


def _format(matrix: Tensor, inputs: int, dtype: torch.dtype) -> str:
    if matrix.dtype == torch.uint8:
        for kind, name in (("4 bits", "4-bit"), ("8 bits", "8-bit")):
            if matrix.shape[1] == panel_bytes(kind, inputs, dtype):
                return name
    return str(dtype).removeprefix("torch.")
