"""A GGUF file as a checkpoint: metadata, and tensors under their Hugging Face names, dequantised."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import gguf
import numpy as np
from gguf.quants import dequantize
from numpy.typing import NDArray

from engine.errors import ModelFileError
from model.config import ModelConfig, from_gguf

Shape = tuple[int, ...]

_TOP_NAMES = {
    "model.embed_tokens.weight": "token_embd.weight",
    "model.norm.weight": "output_norm.weight",
    "lm_head.weight": "output.weight",
}
_LAYER_NAMES = {
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
_Kind = gguf.GGMLQuantizationType
_BLOCK_BYTES = {_Kind.Q4_0: 18, _Kind.Q4_1: 20, _Kind.Q8_0: 34}
_ROPE_FACTORS = "rope_freqs.weight"
# What the reader raises on bytes that are not a whole GGUF file.
_BROKEN = (
    ValueError,
    IndexError,
    KeyError,
    TypeError,
    OverflowError,
    EOFError,
    OSError,
    MemoryError,
    RecursionError,
)


class Blocks(NamedTuple):
    """A quantised matrix: number · scale + minimum, one scale and minimum for 32 neighbours of a row.

    numbers: [rows, columns], uint8 below 16 if there are minima, int8 else; scales, minima: float16.
    """

    numbers: NDArray[Any]
    scales: NDArray[np.float16]
    minima: NDArray[np.float16] | None


class _Reader(gguf.GGUFReader):
    """The library's, over its memory map as a plain array.

    A vocabulary is read in hundreds of thousands of slices. One of a numpy.memmap is a memmap again, which
    costs ten microseconds each time.
    """

    @property
    def data(self) -> Any:
        return self._data

    @data.setter
    def data(self, mapped: Any) -> None:
        self._data = np.asarray(mapped)


class GgufFile:
    """Opens and checks a file; tensors are read from a memory map one at a time."""

    def __init__(self, path: Path) -> None:
        """Raises ModelFileError if the file is missing, truncated or of an architecture not served."""
        self.path = path
        if not path.is_file():
            raise ModelFileError(f"{path}: no such file")
        try:
            self._reader = _Reader(path)
            self._tensors = {tensor.name: tensor for tensor in self._reader.tensors}
            self.metadata: dict[str, Any] = {
                key: field.contents() for key, field in self._reader.fields.items()
            }
        except _BROKEN as error:
            raise ModelFileError(f"{path}: not a whole GGUF file: {error}") from error
        factors: tuple[float, ...] = ()
        if _ROPE_FACTORS in self._tensors:
            factors = tuple(self._dequantised(_ROPE_FACTORS).ravel().tolist())
        self.config: ModelConfig = from_gguf(self.metadata, frozenset(self._tensors), factors, str(path))

    def array(self, name: str, shape: Shape) -> NDArray[np.float32]:
        """A tensor by its Hugging Face name. Raises ModelFileError if it is missing or of another shape."""
        values = self._dequantised(self._tensor(name, shape).name)
        return _halves(values, self.config.head_dim) if self._rotated(name) else values

    def quantised(self, name: str, shape: Shape) -> Blocks | None:
        """The numbers and scales of a tensor in Q4_0, Q4_1 or Q8_0 as stored; None for any other type.

        Raises as `array`.
        """
        tensor = self._tensor(name, shape)
        if tensor.tensor_type not in _BLOCK_BYTES:
            return None
        blocks = tensor.data.reshape(-1, _BLOCK_BYTES[tensor.tensor_type])
        scales = blocks[:, :2].copy().view(np.float16).reshape(shape[0], -1)
        if tensor.tensor_type == _Kind.Q8_0:
            found = Blocks(blocks[:, 2:].copy().view(np.int8).reshape(shape), scales, None)
        else:
            nibbles = blocks[:, -16:]
            numbers = np.concatenate((nibbles & 15, nibbles >> 4), axis=1).reshape(shape)
            with_minima = tensor.tensor_type == _Kind.Q4_1
            minima = (
                blocks[:, 2:4].copy().view(np.float16).reshape(scales.shape) if with_minima else -8 * scales
            )
            found = Blocks(numbers, scales, minima)
        if self._rotated(name):
            dim = self.config.head_dim
            least = None if found.minima is None else _halves(found.minima, dim)
            return Blocks(_halves(found.numbers, dim), _halves(found.scales, dim), least)
        return found

    def _tensor(self, name: str, shape: Shape) -> Any:
        stored = _gguf_name(name)
        if stored not in self._tensors:
            raise ModelFileError(f"{self.path}: tensor {stored} is missing")
        tensor = self._tensors[stored]
        found = tuple(int(size) for size in reversed(tensor.shape))
        if found != shape:
            raise ModelFileError(
                f"{self.path}: tensor {stored} has shape {list(found)}, expected {list(shape)}"
            )
        return tensor

    def _rotated(self, name: str) -> bool:
        return self.config.architecture == "llama" and (".q_proj." in name or ".k_proj." in name)

    def _dequantised(self, stored: str) -> NDArray[np.float32]:
        tensor = self._tensors[stored]
        try:
            values = dequantize(tensor.data, tensor.tensor_type)
        except (NotImplementedError, ValueError) as error:
            kind = tensor.tensor_type.name
            raise ModelFileError(f"{self.path}: tensor {stored} of type {kind} cannot be read") from error
        # Unquantised tensors come as read-only views of the map, which torch does not take.
        return np.array(values, dtype=np.float32, copy=None if values.flags.writeable else True, order="C")


def _gguf_name(name: str) -> str:
    if name in _TOP_NAMES:
        return _TOP_NAMES[name]
    _, _, index, rest = name.split(".", 3)
    stem, _, kind = rest.rpartition(".")
    return f"blk.{index}.{_LAYER_NAMES[stem]}.{kind}"


def _halves(values: NDArray[Any], dim: int) -> NDArray[Any]:
    """GGUF's llama keeps rotated pairs side by side in the rows of a head; ours are dim / 2 apart."""
    pairs = values.reshape(-1, dim // 2, 2, *values.shape[1:])
    return np.ascontiguousarray(pairs.swapaxes(1, 2)).reshape(values.shape)
