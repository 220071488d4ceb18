"""The linear cost of steps that comes nearest to measured ones."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median

import numpy as np

from engine.cost_model import Batch, LinearCost

Point = tuple[Batch, float]
"""A step and its seconds."""


def fit(points: Sequence[Point]) -> LinearCost:
    """Base, per token and per token attended to, by least squares of the relative error.

    None is negative: what would be is left out, and the rest fitted again.
    """
    seconds = np.array([taken for _, taken in points])
    read = [batch.context + sum(before + new // 2 for new, before in batch.prefills) for batch, _ in points]
    rows = [(1.0, batch.tokens, each) for (batch, _), each in zip(points, read, strict=True)]
    matrix = np.array(rows, dtype=np.float64) / seconds[:, None]
    used = [0, 1, 2]
    while True:
        solved = np.linalg.lstsq(matrix[:, used], np.ones(len(points)), rcond=None)[0]
        if solved.min() >= 0 or len(used) == 1:
            break
        used.pop(int(solved.argmin()))
    found = dict.fromkeys(range(3), 0.0) | dict(zip(used, map(float, solved), strict=True))
    return LinearCost(found[0], 0.0, found[1], found[2])


def error(cost: LinearCost, points: Sequence[Point]) -> float:
    """The median relative error."""
    return median(abs(cost.seconds(batch) / seconds - 1.0) for batch, seconds in points)
