"""The packed weights of the compiled kernels: matrices as panels, everything else as float32 vectors."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from kernels import panels
from kernels.panels import Quantised
from model.config import ModelConfig
from model.gguf_file import Shape
from model.packing import Checkpoint, Entry, Packed, recipe

_KINDS = ("plain", "4 bits", "8 bits")


@dataclass(frozen=True, slots=True)
class Panels:
    """A matrix as panels for products in `dtype`; `dense` expands what the file holds in fewer bits."""

    packed: Packed
    dtype: torch.dtype
    dense: bool

    @property
    def name(self) -> str:
        return self.packed.name

    def spec(self, checkpoint: Checkpoint) -> tuple[torch.dtype, Shape]:
        kinds = {panels.kind_of(part) for part in self._stored(checkpoint)}
        kind = kinds.pop() if len(kinds) == 1 else "plain"
        return torch.uint8, self._shape(kind)

    def build(self, checkpoint: Checkpoint) -> Tensor:
        stored = self._stored(checkpoint)
        if len({panels.kind_of(part) for part in stored}) == 1 and stored[0] is not None:
            return panels.compressed(_stacked([part for part in stored if part], self._rows), self.dtype)
        return panels.plain(self._rows(self.packed.build(checkpoint)), self.dtype)

    def fits(self, tensor: Tensor) -> bool:
        shapes = [self._shape(kind) for kind in _KINDS[: 1 if self.dense else len(_KINDS)]]
        return tensor.dtype == torch.uint8 and tuple(tensor.shape) in shapes

    def _stored(self, checkpoint: Checkpoint) -> list[Quantised | None]:
        if self.dense:
            return [None]
        return [checkpoint.quantised(name, shape) for name, shape in self.packed.sources]

    def _shape(self, kind: str) -> Shape:
        outputs, inputs = self.packed.shape
        return (-(-outputs // panels.PANEL), panels.panel_bytes(kind, inputs, self.dtype))

    def _rows(self, rows: Tensor) -> Tensor:
        return panels.interleaved(rows) if self.name.endswith("gate_up") else rows


@dataclass(frozen=True, slots=True)
class Bias:
    """A bias, float32, padded with zeros to whole panels."""

    packed: Packed

    @property
    def name(self) -> str:
        return self.packed.name

    def spec(self, checkpoint: Checkpoint) -> tuple[torch.dtype, Shape]:
        return torch.float32, self._shape

    def build(self, checkpoint: Checkpoint) -> Tensor:
        bias = self.packed.build(checkpoint)
        if self.name.endswith("gate_up_bias"):
            bias = panels.interleaved(bias)
        return functional.pad(bias, (0, self._shape[0] - len(bias)))

    def fits(self, tensor: Tensor) -> bool:
        return tuple(tensor.shape) == self._shape and tensor.dtype == torch.float32

    @property
    def _shape(self) -> Shape:
        return (-(-self.packed.shape[0] // panels.PANEL) * panels.PANEL,)


def panel_recipe(config: ModelConfig, dtype: torch.dtype, *, dense: bool) -> Iterator[Entry]:
    """Every tensor that kernels.native.Decoder takes, in file order."""
    for packed in recipe(config):
        if len(packed.shape) == 2:
            yield Panels(packed, dtype, dense)
        elif packed.name.endswith("_bias"):
            yield Bias(packed)
        else:
            yield packed


def _stacked(parts: list[Quantised], order: Callable[[Tensor], Tensor]) -> Quantised:
    """The rows of all parts, in an order."""
    minima = [part.minima for part in parts if part.minima is not None]
    return Quantised(
        order(torch.cat([part.numbers for part in parts])),
        order(torch.cat([part.scales for part in parts])),
        order(torch.cat(minima)) if minima else None,
    )
