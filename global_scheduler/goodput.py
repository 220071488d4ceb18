"""Which pools serve most requests in time on so many GPUs: DistServe's search (OSDI'24, section 4), and none.

    high affinity   links between all GPUs are fast: the best prefill instance and the best decode instance
                    are found each for itself, then as many of each as balance (algorithm 1)
    low affinity    only those within a node are: whole nodes are cut into prefill and decode instances, and
                    measured together (algorithm 2)
    together        every instance does both phases

The search measures through a port, which a simulator serves; it knows nothing of it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True, slots=True, order=True)
class Parallel:
    """How one instance is spread over GPUs."""

    tensor: int = 1
    pipeline: int = 1

    @property
    def gpus(self) -> int:
        return self.tensor * self.pipeline

    def __str__(self) -> str:
        return f"tensor {self.tensor}, pipeline {self.pipeline}" if self.gpus > 1 else "1 GPU"


@dataclass(frozen=True, slots=True)
class Arm:
    """Pools. Without prefill instances those for decode do both."""

    prefills: int
    decodes: int
    prefill: Parallel = Parallel()
    decode: Parallel = Parallel()

    @property
    def gpus(self) -> int:
        return self.prefills * self.prefill.gpus + self.decodes * self.decode.gpus

    @property
    def together(self) -> bool:
        return not self.prefills

    def __str__(self) -> str:
        if self.together:
            return f"{self.decodes} together ({self.decode})"
        return f"{self.prefills} prefill ({self.prefill}) + {self.decodes} decode ({self.decode})"


class Measure(Protocol):
    """Attainment in [0, 1] of pools at so many requests a second: the share that met *both* objectives.

    `alone` measures one phase by itself: the other is free, and only its own objective counts.
    """

    def __call__(self, arm: Arm, rate: float) -> float: ...

    def alone(self, role: str, parallel: Parallel, rate: float) -> float: ...


@dataclass(frozen=True, slots=True)
class Search:
    """`attainment` must be met. Rates go up to `most` requests a second and GPU, halved `steps` times."""

    attainment: float = 0.9
    most: float = 16.0
    steps: int = 7

    def goodput(self, measure: Callable[[float], float], gpus: int) -> float:
        """The highest rate in requests a second that `measure` still finds served in time."""
        low, high = 0.0, self.most * gpus
        for _ in range(self.steps):
            middle = (low + high) / 2
            low, high = (middle, high) if measure(middle) >= self.attainment else (low, middle)
        return low


@dataclass(frozen=True, slots=True)
class Candidate:
    """Pools that were measured, and the requests a second that they serve in time."""

    arm: Arm
    goodput: float

    @property
    def per_gpu(self) -> float:
        return self.goodput / self.arm.gpus


@dataclass(frozen=True, slots=True)
class Plan:
    """The best of `candidates`, which stand in the order of goodput, and why it is."""

    best: Candidate
    candidates: tuple[Candidate, ...]
    reason: str


def high_affinity(
    gpus: int, parallels: Sequence[Parallel], measure: Measure, search: Search
) -> Iterator[Candidate]:
    """Algorithm 1: each phase alone, then as many instances of each as balance within the GPUs."""
    best: dict[str, tuple[float, Parallel]] = {}
    for role in ("prefill", "decode"):
        for parallel in parallels:
            if parallel.gpus >= gpus:
                continue
            rate = search.goodput(_alone(measure, role, parallel), parallel.gpus)
            per_gpu = rate / parallel.gpus
            if role not in best or per_gpu > best[role][0]:
                best[role] = per_gpu, parallel
    if len(best) < 2:
        return
    (first, prefill), (second, decode) = best["prefill"], best["decode"]
    arms = [
        Arm(count, (gpus - count * prefill.gpus) // decode.gpus, prefill, decode)
        for count in range(1, (gpus - decode.gpus) // prefill.gpus + 1)
    ]
    # What the pools can do together is what the slower of them can; only the best splits are simulated.
    arms.sort(
        key=lambda arm: (
            -min(arm.prefills * prefill.gpus * first, arm.decodes * decode.gpus * second),
            abs(arm.prefills - arm.decodes),
        )
    )
    for arm in arms[:3]:
        yield measured(arm, measure, search)


def low_affinity(
    gpus: int, node: int, parallels: Sequence[Parallel], measure: Measure, search: Search
) -> Iterator[Candidate]:
    """Algorithm 2: one node is cut in every way, measured whole, and repeated."""
    size = min(node, gpus)
    for arm in cuts(size, parallels):
        found = measured(arm, measure, search)
        nodes = gpus // size
        whole = Arm(arm.prefills * nodes, arm.decodes * nodes, arm.prefill, arm.decode)
        yield Candidate(whole, found.goodput * nodes)


def cuts(gpus: int, parallels: Sequence[Parallel]) -> Iterator[Arm]:
    """All ways to use up `gpus` GPUs for both phases, as far as the instances' sizes allow."""
    for prefill in parallels:
        for decode in parallels:
            for prefills in range(1, gpus // prefill.gpus + 1):
                decodes = (gpus - prefills * prefill.gpus) // decode.gpus
                if decodes:
                    yield Arm(prefills, decodes, prefill, decode)


def together(
    gpus: int, parallels: Sequence[Parallel], measure: Measure, search: Search
) -> Iterator[Candidate]:
    """One pool that does both."""
    for parallel in parallels:
        if parallel.gpus <= gpus:
            yield measured(Arm(0, gpus // parallel.gpus, decode=parallel), measure, search)


def measured(arm: Arm, measure: Measure, search: Search) -> Candidate:
    return Candidate(arm, search.goodput(lambda rate: measure(arm, rate), arm.gpus))


def choose(candidates: Iterable[Candidate], gpus: int) -> Plan:
    """The most requests in time on the GPUs; of equals the one that needs no handoff, then the fewest GPUs.

    Raises ValueError when nothing serves any request in time.
    """
    order = sorted(candidates, key=lambda one: (-one.goodput, not one.arm.together, one.arm.gpus))
    if not order or order[0].goodput <= 0:
        raise ValueError("no arrangement serves any request in time: loosen the objectives or add GPUs")
    best = order[0]
    other = next((one for one in order if one.arm.together is not best.arm.together), None)
    reason = f"{best.arm}: {best.goodput:.2f} requests/s in time, {best.goodput / gpus:.3f} a GPU"
    if other is not None:
        name = "apart" if best.arm.together else "together"
        reason += f"; {name} at most {other.goodput:.2f} ({other.arm})"
    return Plan(best, tuple(order), reason)


def _alone(measure: Measure, role: str, parallel: Parallel) -> Callable[[float], float]:
    return lambda rate: measure.alone(role, parallel, rate)
