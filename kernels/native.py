"""The compiled CPU kernels: which models they take, a product, draws, and a decoder of whole steps.

Where `kernels.library` finds an obstacle, no compiler at install or a processor with neither AVX2 nor
AVX-512, torch's operations serve.
"""

from __future__ import annotations

import ctypes
from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from kernels import panels
from kernels.library import library

_KINDS = ("plain", "4 bits", "8 bits")
_MOST_DIM = 256
_MOST_GROUP = 96
_WORD = ctypes.c_int64
_POINTER = ctypes.c_void_p


class _Matrix(ctypes.Structure):
    _fields_ = [
        ("outputs", _WORD),
        ("inputs", _WORD),
        ("format", ctypes.c_int32),
        ("rounded", ctypes.c_int32),
        ("data", _POINTER),
        ("bias", _POINTER),
    ]


_MATRICES = ("qkv", "output", "gate_up", "down")
_NORMS = ("input_norm", "mlp_norm", "q_norm", "k_norm")


class _Layer(ctypes.Structure):
    _fields_ = [*((name, _Matrix) for name in _MATRICES), *((name, _POINTER) for name in _NORMS)]


class _Model(ctypes.Structure):
    _fields_ = [
        *((name, _WORD) for name in ("layers", "hidden", "width", "vocabulary")),
        *((name, _WORD) for name in ("heads", "kv_heads", "dim", "block_size")),
        ("scale", ctypes.c_float),
        ("scale_padding", ctypes.c_float),
        ("eps", ctypes.c_float),
        ("magnitude", ctypes.c_float),
        ("frequencies", _POINTER),
        ("norm", _POINTER),
        ("embedding", _Matrix),
        ("head", _Matrix),
        ("layer", _POINTER),
    ]


class _Step(ctypes.Structure):
    _fields_ = [
        ("rows", _WORD),
        ("tokens", _POINTER),
        ("spans", _WORD),
        ("span", _POINTER),
        ("pool", _POINTER),
        ("blocks", _WORD),
        ("drawn", _WORD),
        ("drawn_rows", _POINTER),
        ("logits", _POINTER),
    ]


class _Draw(ctypes.Structure):
    _fields_ = [
        *((name, ctypes.c_float) for name in ("temperature", "top_p", "min_p")),
        *((name, ctypes.c_uint32) for name in ("first_key", "second_key", "unused")),
        ("top_k", _WORD),
    ]


@dataclass(frozen=True, slots=True)
class Shape:
    """Sizes of a decoder, in elements; `magnitude` multiplies cosines and sines."""

    layers: int
    hidden: int
    width: int
    vocabulary: int
    heads: int
    kv_heads: int
    dim: int
    eps: float
    magnitude: float


def suits(shape: Shape) -> bool:
    """The rule for sizes: inputs of every product in whole groups of 32, heads of 16, 32 … 256, at most 96
    query heads to a KV head."""
    inputs = (shape.hidden, shape.width, shape.heads * shape.dim)
    whole = all(size % panels.GROUP == 0 for size in inputs)
    heads = shape.dim % 16 == 0 and shape.dim <= _MOST_DIM
    return whole and heads and shape.heads // shape.kv_heads <= _MOST_GROUP


def _loaded() -> ctypes.CDLL:
    found = library()
    assert not isinstance(found, str), found
    return found


def multiply(
    x: Tensor, panelled: Tensor, outputs: int, bias: Tensor | None = None, *, rounded: bool = False
) -> Tensor:
    """x [rows, inputs] · weights of any kind ᵀ + bias: [rows, outputs] float32.

    x: contiguous, float32 or bfloat16; panelled: panels [panels, bytes] for x's dtype, which hold `outputs`;
    bias: float32, padded to whole panels. With `rounded`, of float32 and weights of 4 bits alone, x is
    `reference.rounded`. Raises MemoryError.
    """
    kinds = [panels.panel_bytes(kind, x.shape[1], x.dtype) for kind in _KINDS]
    address = None if bias is None else bias.data_ptr()
    kind = kinds.index(panelled.shape[1])
    assert not rounded or (_KINDS[kind] == "4 bits" and x.dtype == torch.float32)
    matrix = _Matrix(outputs, x.shape[1], kind, rounded, panelled.data_ptr(), address)
    out = torch.empty(len(x), outputs)
    failed = _loaded().tandem_multiply(
        ctypes.byref(matrix), x.dtype == torch.bfloat16, x.data_ptr(), len(x), out.data_ptr()
    )
    if failed:
        raise MemoryError("no memory for a panel")
    return out


def sample(
    logits: Tensor, temperature: Tensor, top_k: Tensor, top_p: Tensor, min_p: Tensor, keys: Tensor
) -> Tensor:
    """`reference.sample` of float32 logits. Raises MemoryError."""
    logits = logits.contiguous()
    columns = [column.tolist() for column in (temperature, top_p, min_p, keys, top_k)]
    draws = (_Draw * len(logits))()
    for row, (heat, p, least, key, k) in enumerate(zip(*columns, strict=True)):
        draws[row] = _Draw(heat, p, least, *key, 0, k)
    tokens = torch.empty(len(logits), dtype=torch.int64)
    failed = _loaded().tandem_sample(logits.data_ptr(), *logits.shape, ctypes.byref(draws), tokens.data_ptr())
    if failed:
        raise MemoryError("no memory for the weights of a draw")
    return tokens


class Decoder:
    """Computes steps. Weights and KV cache stay where they are; not to be called by two threads at once.

    A row's logits are the same bits whatever other rows the step has, however a sequence was cut into chunks,
    and wherever its blocks lie.
    """

    def __init__(
        self,
        shape: Shape,
        weights: Mapping[str, Tensor],
        frequencies: Tensor,
        pool: Tensor,
        threads: int = 1,
        *,
        rounded: bool = False,
    ) -> None:
        """weights: `embedding` and `head` (if it is another) as panels, `norm`, and layers.<i>.{qkv, output,
        gate_up, down} as panels, gate and up interleaved, their _bias padded to whole panels, and
        layers.<i>.{input_norm, mlp_norm, q_norm, k_norm}; all but panels float32.
        frequencies: [dim / 2] float32. pool: [layers, 2, blocks, block_size, kv_heads, dim], float32 or
        bfloat16, which is what products are computed in. rounded: what enters the layers' products with
        weights of 4 bits is `reference.rounded`; with a float32 pool alone. Raises MemoryError.
        """
        assert not rounded or pool.dtype == torch.float32
        self._rounded = rounded
        self._library, self._shape, self._pool = _loaded(), shape, pool
        self._held = [weights, frequencies]
        self._weights = weights
        layers = (_Layer * shape.layers)(*(self._layer(index) for index in range(shape.layers)))
        model = _Model(
            *(shape.layers, shape.hidden, shape.width, shape.vocabulary),
            *(shape.heads, shape.kv_heads, shape.dim, pool.shape[3]),
            *(shape.dim**-0.5, 0.0, shape.eps, shape.magnitude),
            frequencies.data_ptr(),
            weights["norm"].data_ptr(),
            self._matrix("embedding", shape.vocabulary, shape.hidden),
            self._matrix("head" if "head" in weights else "embedding", shape.vocabulary, shape.hidden),
            ctypes.addressof(layers),
        )
        handle = self._library.tandem_open(ctypes.byref(model), pool.dtype == torch.bfloat16, threads)
        if not handle:
            raise MemoryError("the compiled kernels found no memory or no threads")
        self._handle = handle

    def __del__(self) -> None:
        if hasattr(self, "_handle"):
            self._library.tandem_close(self._handle)

    def forward(
        self,
        tokens: Sequence[int],
        counts: Sequence[int],
        lengths: Sequence[int],
        blocks: Sequence[Sequence[int]],
        drawn: Sequence[int],
    ) -> Tensor:
        """Compute rows, write their keys and values to the cache, return the logits of the rows `drawn`.

        tokens: the rows of all sequences one after another; per sequence: counts, its rows; lengths, its
        positions after the step; blocks, its block table, which covers them. Returns [drawn, vocabulary]
        float32. Raises ValueError for a token that is not in the vocabulary, IndexError for a block that is
        not in the pool, MemoryError.
        """
        if tokens and not 0 <= min(tokens) <= max(tokens) < self._shape.vocabulary:
            raise ValueError(f"a token is not within the vocabulary of {self._shape.vocabulary}")
        flat = array("i")
        starts = []
        for table in blocks:
            starts.append(len(flat))
            flat.extend(table)
        if flat and not 0 <= min(flat) <= max(flat) < self._pool.shape[2]:
            raise IndexError(f"a block is not within the pool of {self._pool.shape[2]}")
        base = flat.buffer_info()[0]
        spans = array("q")
        first = 0
        for count, length, start in zip(counts, lengths, starts, strict=True):
            spans.extend((first, count, length, base + 4 * start))
            first += count
        rows, picked = array("i", tokens), array("i", drawn)
        logits = torch.empty(len(drawn), self._shape.vocabulary)
        step = _Step(
            *(len(rows), rows.buffer_info()[0], len(counts), spans.buffer_info()[0]),
            *(self._pool.data_ptr(), self._pool.shape[2]),
            *(len(picked), picked.buffer_info()[0], logits.data_ptr()),
        )
        if self._library.tandem_forward(self._handle, ctypes.byref(step)):
            raise MemoryError(f"no memory for a step of {len(rows)} tokens")
        return logits

    def _layer(self, index: int) -> _Layer:
        shape, stem = self._shape, f"layers.{index}."
        queries = shape.heads * shape.dim
        sizes = {
            "qkv": (queries + 2 * shape.kv_heads * shape.dim, shape.hidden),
            "output": (shape.hidden, queries),
            "gate_up": (2 * shape.width, shape.hidden),
            "down": (shape.hidden, shape.width),
        }
        matrices = [self._matrix(stem + name, *sizes[name]) for name in _MATRICES]
        return _Layer(*matrices, *(self._address(stem + name) for name in _NORMS))

    def _matrix(self, name: str, outputs: int, inputs: int) -> _Matrix:
        tensor = self._weights[name]
        widths = [panels.panel_bytes(kind, inputs, self._pool.dtype) for kind in _KINDS]
        count = -(-outputs // panels.PANEL)
        assert tensor.shape[0] == count, name
        assert tensor.is_contiguous(), name
        kind = widths.index(tensor.shape[1])
        return _Matrix(
            outputs,
            inputs,
            kind,
            self._rounded and _KINDS[kind] == "4 bits" and name.startswith("layers."),
            tensor.data_ptr(),
            self._address(f"{name}_bias"),
        )

    def _address(self, name: str) -> int | None:
        tensor = self._weights.get(name)
        return None if tensor is None else tensor.data_ptr()
