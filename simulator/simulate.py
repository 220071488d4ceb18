"""Run a workload through a cluster: the one call behind `tandem simulate`, the paper benchmarks and tests."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from global_scheduler.tape import Input
from simulator.cluster import SimulatedCluster
from simulator.control import Control
from simulator.setup import Setup
from simulator.workload.arrivals import Arrival


def simulate(
    setup: Setup,
    arrivals: Sequence[Arrival],
    *,
    until: float = float("inf"),
    tape: Callable[[Input], None] | None = None,
) -> SimulatedCluster:
    """The cluster after the last request has ended, or at `until`, its ledgers checked.

    `tape` is given what its scheduler hears and decides from its instances' first step on.
    """
    with _few_collections():
        cluster = SimulatedCluster(setup)
        cluster.scheduler.tape = tape
        cluster.add(arrivals)
        Control(cluster).start()
        cluster.run(until)
        cluster.check()
    return cluster


@contextmanager
def _few_collections() -> Iterator[None]:
    """Look for garbage in cycles seldom: a run makes hardly any, and each look passes every object of it."""
    before = gc.get_threshold()
    gc.set_threshold(100_000, 20, 100)
    try:
        yield
    finally:
        gc.set_threshold(*before)
