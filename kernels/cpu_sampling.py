"""Sampling on the CPU: compiled, or row by row, sorting no more of the vocabulary than needed."""

from __future__ import annotations

import torch
from torch import Tensor

from kernels import library, native

_CUTOFF = 1 / 16


def sample(
    logits: Tensor, temperature: Tensor, top_k: Tensor, top_p: Tensor, min_p: Tensor, keys: Tensor
) -> Tensor:
    if logits.dtype == torch.float32 and library.obstacle() is None:
        return native.sample(logits, temperature, top_k, top_p, min_p, keys)
    return row_by_row(logits, temperature, top_k, top_p, min_p, keys)


def row_by_row(
    logits: Tensor, temperature: Tensor, top_k: Tensor, top_p: Tensor, min_p: Tensor, keys: Tensor
) -> Tensor:
    """The same in torch's operations, for any dtype and where nothing is compiled."""
    tokens = logits.argmax(-1)
    settings = zip(
        temperature.tolist(), top_k.tolist(), top_p.tolist(), min_p.tolist(), keys.tolist(), strict=True
    )
    for row, (heat, k, p, least, key) in enumerate(settings):
        if heat > 0:
            tokens[row] = _draw(logits[row], heat, k, p, least, key)
    return tokens


def _draw(logits: Tensor, heat: float, k: int, p: float, least: float, key: list[int]) -> Tensor:
    """One row by itself: no result depends on which rows it shares a batch with."""
    weights = (logits - logits.max()).div_(heat).exp_()
    floor = max(least, _nucleus_floor(weights, k, p)) if k > 0 or p < 1 else least
    if floor == 0:
        tokens = torch.arange(len(weights), dtype=torch.int32)
        return weights.div_(_waits(key, tokens, weights.dtype)).argmax()
    kept = (weights >= floor).nonzero().view(-1)
    race = weights[kept].div_(_waits(key, kept.to(torch.int32), weights.dtype))
    return kept[race.argmax()]


def _waits(key: list[int], tokens: Tensor, dtype: torch.dtype) -> Tensor:
    """`reference.waits` of one row, for some tokens (int32), in words of half the width."""
    first, second = (word - 2**32 if word >= 2**31 else word for word in key)
    bits = _mix(_mix(tokens ^ first).bitwise_xor_(second))
    signed = bits.to(dtype)
    u = signed.add_(torch.where(bits < 0, 2.0**32 + 0.5, 0.5))
    return u.mul_(-(2.0**-32)).log1p_().neg_()


def _mix(x: Tensor) -> Tensor:
    """`reference.mix` in int32, in place: products wrap, and a mask makes the shifts logical."""
    x = x.bitwise_xor_((x >> 16).bitwise_and_(0xFFFF)).mul_(0x7FEB352D)
    x = x.bitwise_xor_((x >> 15).bitwise_and_(0x1FFFF)).mul_(0x846CA68B - 2**32)
    return x.bitwise_xor_((x >> 16).bitwise_and_(0xFFFF))


def _nucleus_floor(weights: Tensor, k: int, p: float) -> float:
    """The least weight that top-k and top-p leave; the greatest weight is 1.

    Only tokens above a cutoff are sorted for top-p, the first of 1/16, 1/256 … above which lies enough:
    a vocabulary of 49,152 takes 3 ms to sort, a pass over it 40 µs.
    """
    floor = 0.0
    if 0 < k < len(weights):
        floor = float(weights.topk(k).values[-1])
        weights = weights[weights >= floor]
    if p >= 1:
        return floor
    enough = p * weights.sum()
    cutoff = _CUTOFF
    while (weights * (weights >= cutoff)).sum() < enough:
        cutoff *= _CUTOFF
    likeliest = weights[weights >= cutoff].sort(descending=True).values
    before = likeliest.cumsum(0) - likeliest
    inside = int((before < enough).sum())
    return max(floor, float(likeliest[max(inside, 1) - 1]))
