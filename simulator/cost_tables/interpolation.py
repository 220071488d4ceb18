"""Linear interpolation in sorted tables, in one dimension and on a grid with holes."""

from __future__ import annotations

import itertools
import math
from bisect import bisect_right
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float64]


class Curve:
    """y over x, linear between the points and beyond the last; never below the first."""

    def __init__(self, points: Mapping[float, float]) -> None:
        self._x = sorted(points)
        self._y = [points[x] for x in self._x]

    def __call__(self, x: float) -> float:
        xs, ys = self._x, self._y
        if x <= xs[0] or len(xs) == 1:
            return ys[0]
        right = min(bisect_right(xs, x), len(xs) - 1)
        low, high = xs[right - 1], xs[right]
        return ys[right - 1] + (ys[right] - ys[right - 1]) * (x - low) / (high - low)


class Line:
    """y over x as a Curve, for one number or an array of them with the same result to the last bit."""

    def __init__(self, xs: Sequence[float], ys: Sequence[float]) -> None:
        self._xs = np.asarray(xs, dtype=np.float64)
        self._ys = np.asarray(ys, dtype=np.float64)
        self._rise = np.diff(self._ys)
        self._width = np.diff(self._xs)

    def __call__(self, x: FloatArray) -> FloatArray:
        """Of ascending numbers, which mostly lie between the same two points."""
        xs, ys = self._xs, self._ys
        if len(xs) == 1:
            return np.full_like(x, ys[0])
        first, last = xs[1:-1].searchsorted(x[[0, -1]], side="right")
        right = first if first == last else xs[1:-1].searchsorted(x, side="right")
        y: FloatArray = ys[right] + self._rise[right] * (x - xs[right]) / self._width[right]
        return y if x[0] > xs[0] else np.where(x <= xs[0], ys[0], y)


class Grid:
    """A function of several numbers, known at some points of a grid.

    0 on an axis means "no such part" and is no neighbour of the first value above it: below that value
    the value itself counts. Between grid lines the corners that are known are weighted as in multilinear
    interpolation and the weights renormalised; beyond the last value of an axis the last two are extended.
    """

    def __init__(self, points: Mapping[tuple[float, ...], float]) -> None:
        self._points = dict(points)
        dimensions = len(next(iter(points)))
        self._slices: dict[tuple[bool, ...], list[list[float]]] = {}
        for present in {tuple(value > 0 for value in point) for point in points}:
            inside = [p for p in points if tuple(value > 0 for value in p) == present]
            self._slices[present] = [sorted({p[i] for p in inside}) for i in range(dimensions)]

    def first(self, axis: int) -> float:
        """The lowest value above 0 on an axis; infinite if there is none."""
        return min((point[axis] for point in self._points if point[axis] > 0), default=math.inf)

    def __call__(self, *at: float) -> float:
        """Raises KeyError when nothing is known of such a combination of parts."""
        axes = self._slices[tuple(value > 0 for value in at)]
        sides = [_side(axis, value) for axis, value in zip(axes, at, strict=True)]
        total = weight_sum = 0.0
        for corner in itertools.product(*sides):
            known = self._points.get(tuple(value for value, _ in corner))
            if known is None:
                continue
            weight = 1.0
            for _, part in corner:
                weight *= part
            total += weight * known
            weight_sum += weight
        if abs(weight_sum) < 1e-9:
            return self._nearest(at, axes)
        return max(0.0, total / weight_sum)

    def _nearest(self, at: Sequence[float], axes: list[list[float]]) -> float:
        """Where no corner is known: the known point that is nearest in steps of the grid."""
        present = tuple(value > 0 for value in at)
        place = [bisect_right(axis, value) for axis, value in zip(axes, at, strict=True)]

        def distance(point: tuple[float, ...]) -> tuple[int, tuple[float, ...]]:
            steps = zip(axes, point, place, strict=True)
            return sum(abs(bisect_right(axis, value) - here) for axis, value, here in steps), point

        inside = (point for point in self._points if tuple(value > 0 for value in point) == present)
        return self._points[min(inside, key=distance)]


def _side(axis: list[float], value: float) -> list[tuple[float, float]]:
    """(grid line, weight) of one or two neighbours."""
    if value <= axis[0] or len(axis) == 1:
        return [(axis[0], 1.0)]
    right = min(bisect_right(axis, value), len(axis) - 1)
    low, high = axis[right - 1], axis[right]
    part = (value - low) / (high - low)
    return [(low, 1.0 - part), (high, part)] if part else [(low, 1.0)]
