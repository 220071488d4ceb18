"""RMSNorm, alone and fused with the residual sum before it (Zhang and Sennrich, arXiv 1910.07467)."""

# A kernel's arguments are pointers and scalars of the device: they have no Python types.
# mypy: allow-untyped-defs, allow-incomplete-defs

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.launch import power_of_two

_ELEMENTS_PER_PROGRAM = 4096


@triton.jit
def _normalise(
    x_ptr, residual_ptr, weight_ptr, output_ptr, rows, heads, x_outer, x_inner, eps,
    DIM: tl.constexpr, WIDTH: tl.constexpr, ROWS: tl.constexpr, ADD: tl.constexpr,
):  # fmt: skip
    """Grid (cdiv(rows, ROWS),); row r of x begins at r // heads * x_outer + r % heads * x_inner."""
    lines = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    dims = tl.arange(0, WIDTH)
    held = (lines < rows)[:, None] & (dims < DIM)[None, :]
    begins = lines // heads * x_outer + lines % heads * x_inner
    x = tl.load(x_ptr + begins[:, None] + dims[None, :], mask=held, other=0.0).to(tl.float32)
    places = lines[:, None] * DIM + dims[None, :]
    if ADD:
        residual = tl.load(residual_ptr + places, mask=held, other=0.0).to(tl.float32)
        rounded = (x + residual).to(residual_ptr.dtype.element_ty)
        tl.store(residual_ptr + places, rounded, mask=held)
        x = rounded.to(tl.float32)
    scaled = x * tl.rsqrt(tl.sum(x * x, 1) / DIM + eps)[:, None]
    weight = tl.load(weight_ptr + dims, mask=dims < DIM, other=0.0).to(tl.float32)
    result = scaled * weight[None, :]
    tl.store(output_ptr + places, result.to(output_ptr.dtype.element_ty), mask=held)


def _launch(x: Tensor, residual: Tensor | None, weight: Tensor, eps: float) -> Tensor:
    dim = x.shape[-1]
    folded = x if x.dim() == 3 else x.reshape(-1, 1, dim)
    rows, heads = folded.shape[0] * folded.shape[1], folded.shape[1]
    output = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    if rows == 0:
        return output
    width = power_of_two(dim)
    lines = max(1, min(power_of_two(rows), _ELEMENTS_PER_PROGRAM // width))
    _normalise[(triton.cdiv(rows, lines),)](
        folded, output if residual is None else residual, weight, output,
        rows, heads, folded.stride(0), folded.stride(1), eps,
        DIM=dim, WIDTH=width, ROWS=lines, ADD=residual is not None,
        num_warps=min(16, max(4, width // 1024)),
    )  # fmt: skip
    return output


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """x / sqrt(mean(x²) + eps) · weight over the last dimension.

    x: [..., dim], float32, float16 or bfloat16, last dimension contiguous (three dimensions with any strides,
    else contiguous); weight: [dim], contiguous. Returns a new contiguous tensor of x's shape and dtype.
    Grid: (cdiv(rows, 4096 // dim),).
    """
    return _launch(x, None, weight, eps)


def add_rms_norm(x: Tensor, residual: Tensor, weight: Tensor, eps: float) -> Tensor:
    """residual += x, in place; returns rms_norm(residual).

    x, residual: [tokens, hidden], contiguous, same dtype; weight: [hidden], contiguous.
    Grid: (cdiv(tokens, 4096 // hidden),).
    """
    return _launch(x, residual, weight, eps)
