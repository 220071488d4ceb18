"""Drawing tokens: temperature, top-k, top-p, min-p, then a race of the tokens that stay.

One program serves one row and never sorts it. Each filter keeps the tokens whose weight
exp((logit − max) / temperature) reaches a floor, and a floor is the least bit pattern b for which the
weights above b are few enough (top-k) or light enough (top-p). Bit patterns of non-negative floats are
ordered as their values, so b is found by a four-way search over integers, about 15 passes over the row.

    logits ─▶ max, argmax ─▶ weights ─▶ floor of top-k ─▶ floor of top-p ─▶ min-p ─▶ draw
"""

# A kernel's arguments are pointers and scalars of the device: they have no Python types.
# mypy: allow-untyped-defs, allow-incomplete-defs

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.launch import interpreted

_TILE = 4096
_INTERPRETED_TILE = 64
_ONE_BITS = tl.constexpr(0x3F800000)


@triton.jit
def _mix(x):
    """`reference.mix`: products of uint32 wrap."""
    x = (x ^ (x >> 16)) * 0x7FEB352D
    x = (x ^ (x >> 15)) * 0x846CA68B
    return x ^ (x >> 16)


@triton.jit
def _waits(tokens, first, second):
    """`reference.waits` of some tokens of a row.

    Not every target has log1p: log(v) · u / (1 − v) of the rounded v = 1 − u is as accurate (Kahan).
    """
    bits = _mix(_mix(tokens.to(tl.uint32) ^ first) ^ second)
    u = (bits.to(tl.float32) + 0.5) * 2.3283064365386963e-10
    v = 1.0 - u
    return tl.where(v == 1.0, u, -tl.log(v) * (u / tl.where(v == 1.0, 1.0, 1.0 - v)))


@triton.jit
def _above(weights_ptr, size, low, middle, high, COUNT: tl.constexpr, TILE: tl.constexpr):
    """How many weights, or how much weight, lies above each of three bit patterns."""
    lanes = tl.arange(0, TILE)
    low = low.to(tl.float32, bitcast=True)
    middle = middle.to(tl.float32, bitcast=True)
    high = high.to(tl.float32, bitcast=True)
    above_low = tl.zeros([TILE], tl.float32)
    above_middle = tl.zeros([TILE], tl.float32)
    above_high = tl.zeros([TILE], tl.float32)
    for start in range(0, size, TILE):
        columns = start + lanes
        weights = tl.load(weights_ptr + columns, mask=columns < size, other=0.0)
        term = tl.full([TILE], 1.0, tl.float32) if COUNT else weights
        above_low += tl.where(weights > low, term, 0.0)
        above_middle += tl.where(weights > middle, term, 0.0)
        above_high += tl.where(weights > high, term, 0.0)
    return tl.sum(above_low, 0), tl.sum(above_middle, 0), tl.sum(above_high, 0)


@triton.jit
def _floor(weights_ptr, size, least, limit, COUNT: tl.constexpr, TILE: tl.constexpr):
    """The least bit pattern ≥ least above which there is less than `limit`; that of 1.0 if there is none."""
    low = least
    high = least * 0 + _ONE_BITS
    while low < high:
        width = high - low
        first = low + width // 4
        second = low + width // 2
        third = high - (width + 3) // 4
        above_first, above_second, above_third = _above(weights_ptr, size, first, second, third, COUNT, TILE)
        if above_first < limit:
            high = first
        elif above_second < limit:
            low = first + 1
            high = second
        elif above_third < limit:
            low = second + 1
            high = third
        else:
            low = third + 1
    return low


@triton.jit
def _draw(weights_ptr, size, floor, first, second, TILE: tl.constexpr):
    """The kept token with the greatest weight / wait, the lowest id among equals."""
    lanes = tl.arange(0, TILE)
    bests = tl.full([TILE], -1.0, tl.float32)
    places = tl.zeros([TILE], tl.int32)
    for start in range(0, size, TILE):
        columns = start + lanes
        weights = tl.load(weights_ptr + columns, mask=columns < size, other=-1.0)
        race = tl.where(weights >= floor, weights / _waits(columns, first, second), -1.0)
        places = tl.where(race > bests, columns, places)
        bests = tl.maximum(bests, race)
    return tl.min(tl.where(bests == tl.max(bests, 0), places, size), 0)


@triton.jit
def _sample(
    logits_ptr, weights_ptr, temperature_ptr, top_k_ptr, top_p_ptr, min_p_ptr, keys_ptr, output_ptr,
    size, logits_row, TILE: tl.constexpr,
):  # fmt: skip
    """Grid (rows,)."""
    row = tl.program_id(0).to(tl.int64)
    logits_ptr += row * logits_row
    weights_ptr += row * size
    lanes = tl.arange(0, TILE)
    bests = tl.full([TILE], float("-inf"), tl.float32)
    places = tl.zeros([TILE], tl.int32)
    for start in range(0, size, TILE):
        columns = start + lanes
        logits = tl.load(logits_ptr + columns, mask=columns < size, other=float("-inf"))
        places = tl.where(logits > bests, columns, places)
        bests = tl.maximum(bests, logits)
    best = tl.max(bests, 0)
    token = tl.min(tl.where(bests == best, places, size), 0)

    temperature = tl.load(temperature_ptr + row)
    if temperature > 0.0:
        for start in range(0, size, TILE):
            columns = start + lanes
            logits = tl.load(logits_ptr + columns, mask=columns < size, other=float("-inf"))
            weights = tl.exp(tl.div_rn(logits - best, temperature))
            tl.store(weights_ptr + columns, weights, mask=columns < size)
        # Threads read below what other threads of the program have written here.
        tl.debug_barrier()
        top_k = tl.load(top_k_ptr + row)
        top_p = tl.load(top_p_ptr + row)
        bits = tl.zeros([], tl.int32)
        if (top_k > 0) & (top_k < size):
            bits = _floor(weights_ptr, size, bits, top_k.to(tl.float32), True, TILE)
        if top_p < 1.0:
            under = tl.maximum(bits - 1, 0)
            left, _, _ = _above(weights_ptr, size, under, under, under, False, TILE)
            bits = _floor(weights_ptr, size, bits, top_p * left, False, TILE)
        floor = tl.maximum(bits.to(tl.float32, bitcast=True), tl.load(min_p_ptr + row))
        first = tl.load(keys_ptr + 2 * row).to(tl.uint32)
        second = tl.load(keys_ptr + 2 * row + 1).to(tl.uint32)
        token = _draw(weights_ptr, size, floor, first, second, TILE)
    tl.store(output_ptr + row, token.to(tl.int64))


def sample(
    logits: Tensor, temperature: Tensor, top_k: Tensor, top_p: Tensor, min_p: Tensor, keys: Tensor
) -> Tensor:
    """Draw one token a row as the winner of an exponential race.

    logits: [rows, vocabulary] float32, last dimension contiguous, −inf where a token is forbidden, no NaN,
    at least one finite entry a row; temperature, top_p, min_p: [rows] float32; top_k: [rows] int64;
    keys: [rows, 2] int64; all contiguous. Filters and draw are those of `reference.sample`; sums are rounded
    in another order, so a draw may differ where a token is within rounding of the edge of the nucleus.
    Returns [rows] int64.
    Grid: (rows,). Raises TypeError for other logits.
    """
    if logits.dtype is not torch.float32:
        raise TypeError(f"the sampling kernel takes float32 logits, not {logits.dtype}: cast them first")
    rows, size = logits.shape
    tile = _INTERPRETED_TILE if interpreted(_sample) else _TILE
    output = torch.empty(rows, dtype=torch.int64, device=logits.device)
    if rows:
        weights = torch.empty((rows, size), dtype=torch.float32, device=logits.device)
        _sample[(rows,)](
            logits, weights, temperature, top_k, top_p, min_p, keys, output, size, logits.stride(0),
            TILE=tile, num_warps=16,
        )  # fmt: skip
    return output
