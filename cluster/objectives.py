"""How many of the requests that ended lately met their objectives: for metrics, console and `tandem top`."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable

from cluster import control_pb2 as pb
from cluster.config_observe import ObserveConfig
from global_scheduler.attainment import attainment

MOST = 10_000
"""Requests of one window that count; of more, the latest."""


class Objectives:
    """Those of the last `window` seconds. An answer of one token meets the objective per token."""

    def __init__(self, config: ObserveConfig, clock: Callable[[], float] = time.monotonic) -> None:
        self._config = config
        self._clock = clock
        self._ended: deque[tuple[float, float, float | None, float | None]] = deque(maxlen=MOST)

    def add(self, ttft: float | None, tpot: float | None, began: float) -> None:
        """A request that began at `began` has ended; `ttft` is None if it failed before its first token."""
        self._ended.append((self._clock(), began, ttft, tpot))

    def lately(self) -> pb.Lately:
        now, window = self._clock(), self._config.window
        while self._ended and self._ended[0][0] < now - window:
            self._ended.popleft()
        count = len(self._ended)
        if not count:
            return pb.Lately()
        ages = [now - began for _, began, _, _ in self._ended]
        first = [ttft for _, _, ttft, _ in self._ended if ttft is not None]
        each = [tpot for _, _, _, tpot in self._ended if tpot is not None]
        soon = [ttft is not None and ttft <= self._config.slo_ttft for _, _, ttft, _ in self._ended]
        fast = [tpot is None or tpot <= self._config.slo_tpot for _, _, _, tpot in self._ended]
        prefill, decode = (attainment(window, zip(ages, met, strict=True)) for met in (soon, fast))
        return pb.Lately(
            requests=count,
            ttft=sum(first) / len(first) if first else 0.0,
            tpot=sum(each) / len(each) if each else 0.0,
            attainment=sum(a and b for a, b in zip(soon, fast, strict=True)) / count,
            ttft_attainment=sum(soon) / count,
            tpot_attainment=sum(fast) / count,
            began=prefill.requests,
            ttft_met=prefill.met,
            tpot_met=decode.met,
        )
