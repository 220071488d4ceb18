"""Run a workload through a cluster: the one call behind `tandem simulate`, the paper benchmarks and tests."""

from __future__ import annotations

from collections.abc import Sequence

from simulator.cluster import SimulatedCluster
from simulator.control import Control
from simulator.setup import Setup
from simulator.workload.arrivals import Arrival


def simulate(setup: Setup, arrivals: Sequence[Arrival], *, until: float = float("inf")) -> SimulatedCluster:
    """The cluster after the last request has ended, or at `until`, its ledgers checked."""
    cluster = SimulatedCluster(setup)
    cluster.add(arrivals)
    Control(cluster).start()
    cluster.run(until)
    cluster.check()
    return cluster
