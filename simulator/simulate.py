"""Run a workload through a cluster: the one call behind `tandem simulate`, the paper benchmarks and tests."""

from __future__ import annotations

from collections.abc import Callable, Sequence

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
    cluster = SimulatedCluster(setup)
    cluster.scheduler.tape = tape
    cluster.add(arrivals)
    Control(cluster).start()
    cluster.run(until)
    cluster.check()
    return cluster
