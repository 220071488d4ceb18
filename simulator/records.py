"""What was seen of every request, and every gap between two tokens: the sink of all simulated instances."""

from __future__ import annotations

import math
from array import array
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from engine.outcome import Emitted
from engine.sequence import Sequence as LiveSequence
from simulator.cost_tables.interpolation import FloatArray
from simulator.workload.arrivals import Arrival

MOST_GAPS = 2_000_000
"""Gaps between tokens that are kept as they were; beyond that they are counted to five digits."""


@dataclass(slots=True)
class Record:
    """One request. Times are in seconds on the virtual clock, NaN until they come.

    `lost` are the seconds without a token after preemptions: waiting again, and computing again.
    """

    arrival: Arrival
    first: float = math.nan
    last: float = math.nan
    tokens: int = 0
    finished: bool = False
    refused: str = ""
    preemptions: int = 0
    lost: float = 0.0
    moves: int = 0

    @property
    def ttft(self) -> float:
        return self.first - self.arrival.at

    @property
    def tpot(self) -> float:
        """Seconds per output token after the first; 0 for an answer of one token."""
        return (self.last - self.first) / (self.tokens - 1) if self.tokens > 1 else 0.0

    @property
    def e2e(self) -> float:
        return self.last - self.arrival.at


class Records:
    """Takes tokens in. `gaps` and `weights` say how often each gap between consecutive tokens was seen.

    A token that comes twice or out of order is a bug of the system under test, and counted as such.
    """

    def __init__(self, finished: Callable[[str], None]) -> None:
        self.records: dict[str, Record] = {}
        self.gaps = array("d")
        self.weights = array("q")
        self.duplicated = 0
        self._finished = finished

    def emitted(self, emitted: Sequence[Emitted], now: float) -> None:
        for one in emitted:
            record = self.records[one.key.request_id]
            if one.index != record.tokens or record.finished:
                self.duplicated += 1
                continue
            if one.index:
                self._gap(now - record.last, 1)
                if one.sequence.preemptions > record.preemptions:
                    record.lost += now - record.last
            else:
                record.first = now
            record.last = now
            record.tokens += 1
            record.preemptions = one.sequence.preemptions
            if one.finish is not None:
                record.finished = True
                self._finished(one.key.request_id)

    def coasted(self, running: Sequence[LiveSequence], start: float, ends: FloatArray) -> None:
        first, last, steps = float(ends[0]), float(ends[-1]), len(ends)
        for sequence in running:
            record = self.records[sequence.request.id]
            self._gap(first - record.last, 1)
            record.last = last
            record.tokens += steps
            if record.tokens != len(sequence.output):
                self.duplicated += 1
        self.gaps.frombytes((ends[1:] - ends[:-1]).tobytes())
        self.weights.extend(array("q", (len(running),)) * (steps - 1))
        if len(self.gaps) > MOST_GAPS:
            self._merge()

    def ended(self, emitted: Sequence[Emitted]) -> None:
        for one in emitted:
            record = self.records[one.key.request_id]
            if one.index + 1 != record.tokens or record.finished:
                self.duplicated += 1
                continue
            record.finished = True
            self._finished(one.key.request_id)

    def _gap(self, seconds: float, weight: int) -> None:
        self.gaps.append(seconds)
        self.weights.append(weight)
        if len(self.gaps) > MOST_GAPS:
            self._merge()

    def _merge(self) -> None:
        """Gaps that are the same to five digits become one, so that there are never many."""
        gaps, weights = np.array(self.gaps), np.array(self.weights)
        scale = np.power(10.0, np.floor(np.log10(np.maximum(gaps, 1e-12))) - 4)
        merged, where = np.unique(np.round(gaps / scale) * scale, return_inverse=True)
        counts = np.bincount(where, weights=weights).astype(np.int64)
        self.gaps, self.weights = array("d", merged.tobytes()), array("q", counts.tobytes())
