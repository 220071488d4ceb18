"""The arithmetic of slices: how long a batch takes for S steps, how to batch, where to, and how often.

After Slice-Level Scheduling (arXiv 2406.13511). An answer is cut into slices of S decode steps. Batches are
served for a slice at most, so their time and memory are known before they begin:

    T(N, L, S) = p1·N·L + p2·N + p3·L + p4  +  Σ_{l = L+1 … L+S} d1·N·l + d2·N + d3·l + d4

N sequences of at most L tokens. The paper drops the KV at the end of a slice and computes it again with the
next; here it is kept, so the first part counts only the sequences that have none.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from heapq import heapify, heapreplace

Coefficients = tuple[float, float, float, float]


@dataclass(frozen=True, slots=True)
class SliceTime:
    """The estimator. Coefficients are in seconds, for N·l, N, l and 1."""

    prefill: Coefficients
    decode: Coefficients

    def seconds(self, count: int, length: int, steps: int, fresh: int | None = None) -> float:
        """`count` sequences of at most `length` tokens for `steps` steps; `fresh` of them, all if absent,
        have no KV yet."""
        fresh = count if fresh is None else fresh
        p1, p2, p3, p4 = self.prefill
        d1, d2, d3, d4 = self.decode
        reading = p1 * fresh * length + p2 * fresh + p3 * length + p4 if fresh else 0.0
        lengths = steps * length + steps * (steps + 1) / 2
        return reading + (d1 * count + d3) * lengths + (d2 * count + d4) * steps


def fit(prefills: Iterable[tuple[int, int, float]], decodes: Iterable[tuple[int, int, float]]) -> SliceTime:
    """The estimator closest to what was measured: (sequences, length, seconds) of prompts, and of steps.

    Raises ValueError for fewer than four unlike points of either.
    """
    return SliceTime(_least_squares(prefills), _least_squares(decodes))


@dataclass(frozen=True, slots=True)
class Job:
    """`length` is in tokens, prompt and output so far; `fresh` says that its KV is still to be computed."""

    length: int
    fresh: bool = True


def batches(jobs: Sequence[Job], time: SliceTime, steps: int, slots: int, most: int = 256) -> list[list[int]]:
    """Indices of `jobs`, batched so that all batches one after the other take least.

    Within `slots` tokens of KV, N·(L + S), and `most` sequences for each; a job that alone needs more has a
    batch for itself. Jobs are sorted by length, since the longest sets the time of a batch; then f(i), the
    least for the first i, is min_j f(j - 1) + T(of those from j to i).
    """
    order = sorted(range(len(jobs)), key=lambda index: (jobs[index].length, index))
    best, cut = [0.0], [0]
    for last in range(1, len(order) + 1):
        longest = jobs[order[last - 1]].length
        fresh = 0
        found, at = float("inf"), last
        for first in range(last, 0, -1):
            count = last - first + 1
            if count > 1 and (count > most or count * (longest + steps) > slots):
                break
            fresh += jobs[order[first - 1]].fresh
            total = best[first - 1] + time.seconds(count, longest, steps, fresh)
            if total < found:
                found, at = total, first
        best.append(found)
        cut.append(at)
    formed: list[list[int]] = []
    last = len(order)
    while last:
        formed.append(order[cut[last] - 1 : last])
        last = cut[last] - 1
    return formed[::-1]


def spread(times: Sequence[float], loads: Sequence[float]) -> list[int]:
    """For each batch the instance it goes to: the longest first, each to the least loaded (max-min).

    `loads` are seconds of work that the instances have already; they need at most 4/3 of the best.
    """
    heap = [(load, instance) for instance, load in enumerate(loads)]
    heapify(heap)
    places = [0] * len(times)
    for index in sorted(range(len(times)), key=lambda index: (-times[index], index)):
        load, instance = heap[0]
        places[index] = instance
        heapreplace(heap, (load + times[index], instance))
    return places


def interval(loads: Iterable[float], share: float = 0.5, least: float = 3.0) -> float:
    """Seconds until batches are formed again: a `share` of what the least loaded has to do, `least` at least.

    So nobody runs out of work, and the busier all are, the more requests there are to choose from.
    """
    return max(share * min(loads, default=0.0), least)


def _least_squares(points: Iterable[tuple[int, int, float]]) -> Coefficients:
    """Of a·N·l + b·N + c·l + d, by the normal equations with scaled columns."""
    every = list(points)
    columns: list[Callable[[int, int], float]] = [
        lambda n, length: n * length, lambda n, length: n, lambda n, length: length, lambda n, length: 1.0,
    ]  # fmt: skip
    scales = [max((column(n, length) for n, length, _ in every), default=1.0) for column in columns]
    rows = [
        [column(n, length) / scale for column, scale in zip(columns, scales, strict=True)]
        for n, length, _ in every
    ]
    matrix = [[sum(row[i] * row[j] for row in rows) for j in range(4)] for i in range(4)]
    right = [
        sum(row[i] * seconds for row, (_, _, seconds) in zip(rows, every, strict=True)) for i in range(4)
    ]
    solved = _solve(matrix, right)
    a, b, c, d = (value / scale for value, scale in zip(solved, scales, strict=True))
    return a, b, c, d


def _solve(matrix: list[list[float]], right: list[float]) -> list[float]:
    """Gauss with pivots. Raises ValueError where there is no one solution."""
    size = len(right)
    rows = [[*row, value] for row, value in zip(matrix, right, strict=True)]
    for column in range(size):
        pivot = max(range(column, size), key=lambda row: abs(rows[row][column]))
        if abs(rows[pivot][column]) < 1e-12:
            raise ValueError("the points don't tell the terms apart: measure other counts and lengths")
        rows[column], rows[pivot] = rows[pivot], rows[column]
        for row in range(column + 1, size):
            factor = rows[row][column] / rows[column][column]
            rows[row] = [x - factor * y for x, y in zip(rows[row], rows[column], strict=True)]
    solution = [0.0] * size
    for row in reversed(range(size)):
        rest = sum(rows[row][column] * solution[column] for column in range(row + 1, size))
        solution[row] = (rows[row][size] - rest) / rows[row][row]
    return solution
