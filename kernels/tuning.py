"""Which tiles the attention kernels should take: every candidate timed on the GPU at hand.

What serves takes the tile that `tile_for` names, and never tries others by itself: two instances that chose
differently would round differently, and a choice made while a request waits makes it wait longer. The
candidates are timed by `tandem bench kernels`, and the best of them belongs into `tile_for`.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch

from kernels import paged_attention, prefill_attention
from kernels.bench import (
    Cases,
    KernelTime,
    Sizes,
    Timer,
    decode_costs,
    decode_inputs,
    prefill_costs,
    prefill_inputs,
)
from kernels.launch import Tile


def tune(timer: Timer, sizes: Sizes, device: torch.device, dtype: torch.dtype) -> Iterator[KernelTime]:
    """Every candidate of both kernels, those that serve first. Candidates are for 16-bit types."""
    cases = Cases(None, timer, sizes, device, dtype)
    (batch, context), tokens = sizes.tuned
    decoding = decode_inputs(cases, batch, context)
    costs = decode_costs(sizes, batch, context, dtype.itemsize)
    for tile in paged_attention.TILES:
        yield cases.time(
            "decode attention, tile",
            f"{batch} × {context}, {_name(tile)}",
            lambda: paged_attention.attend(*decoding, tile),  # noqa: B023 (called here)
            *costs,
        )
    prompt = prefill_inputs(cases, tokens)
    costs = prefill_costs(sizes, tokens, dtype.itemsize)
    for tile in prefill_attention.TILES:
        yield cases.time(
            "prefill attention, tile",
            f"{tokens}, {_name(tile)}",
            lambda: prefill_attention.attend(*prompt, None, tile),  # noqa: B023 (called here)
            *costs,
        )


def _name(tile: Tile) -> str:
    return f"{tile.rows} by {tile.tokens}, {tile.warps} warps, {tile.stages} stages"
