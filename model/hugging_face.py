"""A Hugging Face folder as a checkpoint: config.json and one or several safetensors files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from engine.errors import ModelFileError
from kernels.panels import Quantised
from model.config import ModelConfig, from_hugging_face
from model.files import read_json
from model.gguf_file import Shape

_SINGLE = "model.safetensors"
_INDEX = "model.safetensors.index.json"
_READABLE = (torch.float32, torch.float16, torch.bfloat16, torch.float64)


class HuggingFaceFolder:
    """Opens and checks a folder; tensors are read from memory maps one at a time."""

    def __init__(self, path: Path) -> None:
        """Raises ModelFileError if a file is missing or broken, or the architecture is not served."""
        self.path = path
        values = read_json(path / "config.json")
        if values.get("quantization_config"):
            raise ModelFileError(f"{path / 'config.json'}: quantised weights are read from GGUF files only")
        self.config: ModelConfig = from_hugging_face(values, str(path / "config.json"))
        self._files: dict[str, Any] = {}
        self._holders = self._locate()

    def _locate(self) -> dict[str, str]:
        """Which file holds which tensor."""
        if (self.path / _INDEX).is_file():
            holders = read_json(self.path / _INDEX).get("weight_map")
            if not isinstance(holders, dict):
                raise ModelFileError(f"{self.path / _INDEX}: weight_map is missing")
            return {str(name): Path(str(file)).name for name, file in holders.items()}
        return dict.fromkeys(self._open(_SINGLE).keys(), _SINGLE)

    def _open(self, file: str) -> Any:
        if file not in self._files:
            path = self.path / file
            if not path.is_file():
                raise ModelFileError(f"{path}: no such file")
            try:
                self._files[file] = safe_open(path, framework="pt")
            except (SafetensorError, OSError) as error:
                raise ModelFileError(f"{path}: not a whole safetensors file: {error}") from error
        return self._files[file]

    def tensor(self, name: str, shape: Shape) -> Tensor:
        """A tensor by name, as stored. Raises ModelFileError if missing or of another shape or type."""
        if name not in self._holders:
            raise ModelFileError(f"{self.path}: tensor {name} is missing")
        path = self.path / self._holders[name]
        try:
            tensor: Tensor = self._open(path.name).get_tensor(name)
        except SafetensorError as error:
            raise ModelFileError(f"{path}: tensor {name} cannot be read: {error}") from error
        if tuple(tensor.shape) != shape:
            raise ModelFileError(
                f"{path}: tensor {name} has shape {list(tensor.shape)}, expected {list(shape)}"
            )
        if tensor.dtype not in _READABLE:
            raise ModelFileError(f"{path}: tensor {name} has type {tensor.dtype}, which is not served")
        return tensor

    def quantised(self, name: str, shape: Shape) -> Quantised | None:
        """None: quantised folders are refused."""
        return None
