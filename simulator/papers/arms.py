"""Short words for what most experiments need: one instance, one policy, one number."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from engine.batch import BatchPolicy, WaitingQueue
from engine.cost_model import CostModel, LinearCost
from simulator.cluster import SimulatedCluster
from simulator.cost_tables.closed_form import ClosedForm
from simulator.network import LinkSettings
from simulator.setup import PoolSetup, Setup
from simulator.simulate import simulate
from simulator.workload.arrivals import Arrival

MISTRAL_7B = LinearCost(0.003, 0.008, 0.09e-3, 6.5e-8)
"""An A100-like card: 32 decodes of 4k tokens take 19.5 ms, a fifth of Sarathi-Serve's strict objective."""

OPT_13B = LinearCost(0.005, 0.017, 0.167e-3, 2.65e-7)
"""A 40 GB A100-like card."""

OPT_13B_A100 = ClosedForm(
    (18.10254646487, 0.10191225727, 7.122264314e-06),
    (19.93470262490, 0.00062693565, 0.03850697741),
    (7.16618894685, 0.00057980004, 0.15831096192),
    95,
)
"""The coefficients that DistServe's authors fitted to their engine on an 80 GB A100, tensor parallelism 1."""

QUICK = LinkSettings(bandwidth=300e9, latency=1e-4)

Arrange = Callable[[], tuple[WaitingQueue, BatchPolicy]]


def one(
    arrange: Arrange,
    arrivals: Sequence[Arrival],
    cost: CostModel,
    *,
    blocks: int = 100_000,
    max_sequences: int = 256,
    max_tokens: int | None = None,
    until: float = float("inf"),
) -> SimulatedCluster:
    """A workload on one instance that does both phases."""
    pool = PoolSetup("decode", 1, cost, blocks, arrange, max_sequences=max_sequences)
    return simulate(Setup((pool,), links=QUICK, max_tokens=max_tokens, beat=5.0), arrivals, until=until)


def highest(holds: Callable[[float], bool], low: float, high: float, steps: int) -> float:
    """The highest rate that holds, by bisection; `low` is believed to hold and `high` not to."""
    for _ in range(steps):
        middle = (low + high) / 2
        low, high = (middle, high) if holds(middle) else (low, middle)
    return low
