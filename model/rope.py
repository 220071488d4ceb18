"""Rotary angles: the inverse frequencies of each scaling kind, cosines and sines of positions.

Scalings: linear (Chen et al. 2023), NTK by parts with a ramp, "yarn" (Peng et al., arXiv 2309.00071), and
Llama 3's smooth cut between two wavelengths. All in float32, as the models were trained.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from model.config import ModelConfig, RopeConfig


class Rotary:
    """Angles of one model on one device."""

    def __init__(self, config: ModelConfig, device: torch.device | str = "cpu") -> None:
        frequencies, self._magnitude = inverse_frequencies(config.rope, config.head_dim)
        self._frequencies = frequencies.to(device)

    def at(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Cosines and sines of positions [tokens]: two tensors [tokens, head_dim / 2], float32."""
        turns = positions.to(torch.float32)[:, None] * self._frequencies
        cos, sin = turns.cos(), turns.sin()
        if self._magnitude != 1.0:
            return cos * self._magnitude, sin * self._magnitude
        return cos, sin


def inverse_frequencies(rope: RopeConfig, dim: int) -> tuple[Tensor, float]:
    """[dim / 2] float32, radians per position, and the factor on cosine and sine (1 but for yarn)."""
    periods = rope.base ** (torch.arange(0, dim, 2, dtype=torch.float32) / dim)
    if rope.factors:
        periods = periods * torch.tensor(rope.factors, dtype=torch.float32)
    plain = 1.0 / periods
    match rope.kind:
        case "linear":
            return plain / rope.factor, 1.0
        case "llama3":
            return _llama3(rope, plain), 1.0
        case "yarn":
            return _yarn(rope, periods), _magnitude(rope)
        case _:
            return plain, 1.0


def _llama3(rope: RopeConfig, plain: Tensor) -> Tensor:
    wavelength = 2 * math.pi / plain
    longest = rope.original_context / rope.low_frequency
    shortest = rope.original_context / rope.high_frequency
    band = rope.high_frequency - rope.low_frequency
    share = (rope.original_context / wavelength - rope.low_frequency) / band
    smooth = (1 - share) * plain / rope.factor + share * plain
    scaled = torch.where(wavelength > longest, plain / rope.factor, smooth)
    return torch.where(wavelength < shortest, plain, scaled)


def _yarn(rope: RopeConfig, periods: Tensor) -> Tensor:
    dim = 2 * len(periods)

    def dimension(rotations: float) -> float:
        """The dimension that turns `rotations` times over the original context."""
        return dim * math.log(rope.original_context / (rotations * 2 * math.pi)) / (2 * math.log(rope.base))

    low, high = dimension(rope.beta_fast), dimension(rope.beta_slow)
    if rope.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, dim - 1)
    if low == high:
        high += 0.001
    ramp = ((torch.arange(dim // 2, dtype=torch.float32) - low) / (high - low)).clamp(0, 1)
    kept = 1 - ramp
    return 1.0 / (rope.factor * periods) * (1 - kept) + 1.0 / periods * kept


def _magnitude(rope: RopeConfig) -> float:
    """Yarn's temperature on attention, applied to cosine and sine of both q and k."""
    if rope.attention_factor is not None:
        return rope.attention_factor

    def scale(by: float) -> float:
        return 0.1 * by * math.log(rope.factor) + 1.0 if rope.factor > 1 else 1.0

    if rope.mscale and rope.mscale_all_dim:
        return scale(rope.mscale) / scale(rope.mscale_all_dim)
    return scale(1.0)
