"""How busy the cluster was lately: samples of its status at even times, for graphs."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from dataclasses import asdict, dataclass

from cluster import control_pb2 as pb


@dataclass(frozen=True, slots=True)
class Sample:
    """One look at the cluster. `time` in unix seconds, rates in tokens a second, latencies in seconds.

    Latencies and attainment are those of requests that ended lately, None where none did.
    """

    time: float
    running: int
    waiting: int
    kv_usage: float
    prompt_rate: float
    output_rate: float
    ttft: float | None
    tpot: float | None
    attainment: float | None


class History:
    """The last `limit` samples. Token counts of an instance that is new or gone count for nothing."""

    def __init__(self, limit: int, clock: Callable[[], float] = time.time) -> None:
        self._samples: deque[Sample] = deque(maxlen=limit)
        self._clock = clock
        self._before: dict[str, tuple[int, int]] = {}
        self._at: float | None = None

    def add(self, status: pb.ClusterStatus) -> Sample:
        now = self._clock()
        known = [one.status for one in status.instances if one.HasField("status")]
        prompt, output = self._grown(status)
        passed = now - self._at if self._at is not None else 0.0
        total = sum(one.blocks_total for one in known)
        used = sum(one.blocks_used + one.blocks_reserved for one in known)
        sample = Sample(
            time=now,
            running=sum(one.running for one in known),
            waiting=sum(one.waiting for one in known),
            kv_usage=used / total if total else 0.0,
            prompt_rate=prompt / passed if passed > 0 else 0.0,
            output_rate=output / passed if passed > 0 else 0.0,
            ttft=_mean(status, "ttft"),
            tpot=_mean(status, "tpot"),
            attainment=_mean(status, "attainment"),
        )
        self._at = now
        self._samples.append(sample)
        return sample

    def listed(self) -> list[dict[str, float | None]]:
        """Oldest first."""
        return [asdict(sample) for sample in self._samples]

    def _grown(self, status: pb.ClusterStatus) -> tuple[int, int]:
        """Prompt and output tokens since the last sample."""
        counts = {
            one.name: (one.status.prompt_tokens, one.status.output_tokens)
            for one in status.instances
            if one.HasField("status")
        }
        grown = [0, 0]
        for name, now in counts.items():
            before = self._before.get(name)
            for index in (0, 1):
                if before is not None and now[index] > before[index]:
                    grown[index] += now[index] - before[index]
        self._before = counts
        return grown[0], grown[1]


def _mean(status: pb.ClusterStatus, what: str) -> float | None:
    """Over the gateways, by the number of requests that each has lately ended; None where none has."""
    told = [one.lately for one in status.gateways if one.lately.requests]
    requests = sum(one.requests for one in told)
    if not requests:
        return None
    return float(sum(getattr(one, what) * one.requests for one in told) / requests)
