"""What the Triton launchers share: element types for dots, powers of two, what a device is."""

from __future__ import annotations

from functools import cache
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from triton.runtime.interpreter import InterpretedFunction

LOG2E = 1.4426950408889634


class Tile(NamedTuple):
    """How an attention kernel is cut: rows of queries and tokens at a time, warps, stages of its pipeline.

    A tile's addresses come out of the block table, which takes two stages of a pipeline for itself: up to
    four stages keep one tile of keys and values in shared memory; five keep two, and load one while the other
    is used.
    """

    rows: int
    tokens: int
    warps: int
    stages: int


_TRITON_TYPES = {torch.float32: tl.float32, torch.float16: tl.float16, torch.bfloat16: tl.bfloat16}
_INTERPRETED = (2, 80)


def interpreted(kernel: object) -> bool:
    """Whether a kernel runs in Triton's interpreter, which has no GPU and computes bfloat16 wrongly."""
    return isinstance(kernel, InterpretedFunction)


def dot_type(kernel: object, dtype: torch.dtype) -> tl.dtype:
    """The element type in which a kernel multiplies matrices whose activations have `dtype`.

    The interpreter keeps bfloat16 as integers, so there every load is widened first.
    Raises TypeError for a type that the kernels do not serve.
    """
    if dtype not in _TRITON_TYPES:
        raise TypeError(f"Triton kernels take float32, float16 or bfloat16 activations, not {dtype}")
    if dtype is torch.bfloat16 and interpreted(kernel):
        return tl.float32
    return _TRITON_TYPES[dtype]


def register_limit(dtype: torch.dtype) -> int | None:
    """Registers a thread of an attention kernel may take, None to let the assembler choose.

    Left to itself ptxas spills some float32 kernels, whose dots are unrolled, to fit more programs in.
    """
    return 255 if dtype is torch.float32 else None


def power_of_two(number: int, least: int = 1) -> int:
    """The smallest power of two that is ≥ number and ≥ least."""
    return max(least, int(triton.next_power_of_2(number)))


@cache
def _properties(index: int) -> tuple[int, int]:
    """Multiprocessors and compute capability (tens and units) of a CUDA device."""
    found = torch.cuda.get_device_properties(index)
    return int(found.multi_processor_count), int(found.major * 10 + found.minor)


def properties(device: torch.device) -> tuple[int, int]:
    """Multiprocessors and compute capability (80, 90 …) of a tensor's device; a stand-in without CUDA."""
    if device.type != "cuda":
        return _INTERPRETED
    return _properties(device.index)
