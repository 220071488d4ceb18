"""SiLU of the gate times the up projection, in one pass over their fused output."""

# A kernel's arguments are pointers and scalars of the device: they have no Python types.
# mypy: allow-untyped-defs, allow-incomplete-defs

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.launch import power_of_two


@triton.jit
def _silu_mul(gate_up_ptr, output_ptr, width, gate_up_row, TILE: tl.constexpr):
    """Grid (tokens, cdiv(width, TILE))."""
    row = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * TILE + tl.arange(0, TILE)
    inside = columns < width
    begin = gate_up_ptr + row * gate_up_row
    gate = tl.load(begin + columns, mask=inside, other=0.0).to(tl.float32)
    up = tl.load(begin + width + columns, mask=inside, other=0.0).to(tl.float32)
    result = gate * tl.sigmoid(gate) * up
    tl.store(output_ptr + row * width + columns, result.to(output_ptr.dtype.element_ty), mask=inside)


def silu_mul(gate_up: Tensor) -> Tensor:
    """silu(gate) · up. gate_up: [tokens, 2 · width], gate in the first half, last dimension contiguous.

    float32, float16 or bfloat16. Returns a new contiguous [tokens, width] of the same dtype.
    Grid: (tokens, cdiv(width, 1024)).
    """
    tokens, width = gate_up.shape[0], gate_up.shape[1] // 2
    output = torch.empty((tokens, width), dtype=gate_up.dtype, device=gate_up.device)
    if tokens:
        tile = min(1024, power_of_two(width))
        _silu_mul[(tokens, triton.cdiv(width, tile))](
            gate_up, output, width, gate_up.stride(0), TILE=tile, num_warps=4
        )
    return output
