"""Weights in the order in which the compiled kernels read them: panels of 64 outputs.

    plain      [panel][word][64 columns][inputs of a word]                                 a word is 4 bytes:
    4 bits     [panel][group of 32 inputs][numbers: 1024 bytes | 64 scales | 64 minima]    one float32 or
    8 bits     [panel][group of 32 inputs][numbers: 2048 bytes | 64 scales]                two bfloat16

Scales and minima are float16; a weight is number · scale + minimum, rounded once to the element type. Outputs
beyond a multiple of 64 are padded with zeros. `expanded` is the inverse of all three.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

PANEL = 64
GROUP = 32
_VECTOR = 16


@dataclass(frozen=True, slots=True)
class Quantised:
    """weights[o, i] = numbers[o, i] · scales[o, i // 32] + minima[o, i // 32].

    numbers: [outputs, inputs], uint8 below 16 if there are minima, int8 else; scales, minima: float16,
    [outputs, inputs / 32].
    """

    numbers: Tensor
    scales: Tensor
    minima: Tensor | None

    def dense(self) -> Tensor:
        """[outputs, inputs] float32."""
        grouped = self.numbers.float().unflatten(1, (-1, GROUP)) * self.scales.float()[:, :, None]
        if self.minima is not None:
            grouped = grouped + self.minima.float()[:, :, None]
        return grouped.flatten(1)


def panel_bytes(kind: str, inputs: int, dtype: torch.dtype) -> int:
    """Bytes of one panel; kind: plain, 4 bits or 8 bits."""
    match kind:
        case "4 bits":
            return inputs // GROUP * (PANEL * GROUP // 2 + PANEL * 4)
        case "8 bits":
            return inputs // GROUP * (PANEL * GROUP + PANEL * 2)
        case _:
            return inputs * PANEL * dtype.itemsize


def kind_of(weights: Quantised | None) -> str:
    """In which kind of panel weights are kept; None stands for any that are not quantised."""
    if weights is None:
        return "plain"
    return "8 bits" if weights.minima is None else "4 bits"


def interleaved(rows: Tensor) -> Tensor:
    """Rows of gate stacked on as many of up, as 32 of the one beside the 32 of the other, and so on."""
    return rows.view(2, -1, PANEL // 2, *rows.shape[1:]).transpose(0, 1).reshape(rows.shape)


def plain(weight: Tensor, dtype: torch.dtype) -> Tensor:
    """weight [outputs, inputs], inputs a multiple of 2 → [panels, bytes] uint8."""
    per_word = 4 // dtype.itemsize
    padded = _padded(weight.to(dtype)).unflatten(1, (-1, per_word)).unflatten(0, (-1, PANEL))
    return padded.transpose(1, 2).contiguous().flatten(1).view(torch.uint8)


def compressed(weights: Quantised, dtype: torch.dtype) -> Tensor:
    """Quantised weights → [panels, bytes] uint8, expanded to `dtype` by who reads them."""
    numbers = _padded(weights.numbers.view(torch.uint8)).unflatten(1, (-1, GROUP)).unflatten(0, (-1, PANEL))
    numbers = numbers.transpose(1, 2)  # [panels, groups, 64 columns, 32 inputs]
    if weights.minima is None:
        packed, extras = _bytes(numbers, dtype), [weights.scales]
    else:
        packed, extras = _nibbles(numbers, dtype), [weights.scales, weights.minima]
    parts = [packed]
    for extra in extras:
        groups = _padded(extra).unflatten(0, (-1, PANEL)).transpose(1, 2).contiguous()
        parts.append(groups.view(torch.uint8))
    return torch.cat(parts, dim=2).flatten(1)


def _padded(rows: Tensor) -> Tensor:
    return functional.pad(rows, (0, 0, 0, -len(rows) % PANEL))


def _bytes(numbers: Tensor, dtype: torch.dtype) -> Tensor:
    """[panels, groups, 64, 32] → [panels, groups, 2048]: word by word, 64 columns each."""
    per_word = 4 // dtype.itemsize
    return numbers.unflatten(3, (-1, per_word)).transpose(2, 3).flatten(2)


def _nibbles(numbers: Tensor, dtype: torch.dtype) -> Tensor:
    """[panels, groups, 64, 32] → [panels, groups, 1024].

    Lanes of 32 bits hold 8 numbers each, the first in the lowest bits: of one column and 8 neighbouring
    inputs for float32, of one column and every other of 16 inputs for bfloat16, beside the lane of the rest.
    """
    per_word = 4 // dtype.itemsize
    lanes = numbers.unflatten(3, (-1, 8, per_word)).unflatten(2, (-1, _VECTOR))
    # [panels, groups, vector, column, part, eighth, which of the word] → numbers of a lane last
    ordered = lanes.permute(0, 1, 4, 2, 3, 6, 5)
    return (ordered[..., 0::2] | ordered[..., 1::2] << 4).flatten(2)


def expanded(panels: Tensor, outputs: int, inputs: int, dtype: torch.dtype) -> Tensor:
    """Panels of any kind → [outputs, inputs] of `dtype`: what the compiled kernels multiply with."""
    width = panels.shape[1]
    kind = next(k for k in ("plain", "4 bits", "8 bits") if panel_bytes(k, inputs, dtype) == width)
    per_word = 4 // dtype.itemsize
    if kind == "plain":
        words = panels.view(dtype).view(len(panels), -1, PANEL, per_word)
        return words.transpose(1, 2).reshape(-1, inputs)[:outputs]
    groups = panels.view(len(panels), inputs // GROUP, -1)
    if kind == "8 bits":
        size = PANEL * GROUP
        numbers = groups[..., :size].view(torch.int8).unflatten(2, (-1, PANEL, per_word)).transpose(2, 3)
    else:
        size = PANEL * GROUP // 2
        lanes = torch.stack((groups[..., :size] & 15, groups[..., :size] >> 4), dim=-1).flatten(2)
        shape = (GROUP // 8 // per_word, PANEL // _VECTOR, _VECTOR, per_word, 8)
        numbers = lanes.unflatten(2, shape).permute(0, 1, 3, 4, 2, 6, 5)
    numbers = numbers.reshape(*groups.shape[:2], PANEL, GROUP).transpose(1, 2).reshape(-1, inputs)
    extras = groups[..., size:].contiguous().view(torch.float16).unflatten(2, (-1, PANEL))
    scales, *minima = (
        extras[:, :, index].transpose(1, 2).reshape(-1, inputs // GROUP) for index in range(extras.shape[2])
    )
    return Quantised(numbers, scales, minima[0] if minima else None).dense().to(dtype)[:outputs]
