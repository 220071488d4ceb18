"""Measures pools for the planner: each arrangement is a config that the simulator runs on the trace."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from cluster.config import Config
from cluster.settings_change import with_settings
from cluster.simulation import Hardware, setup_of
from engine.cost_model import Batch, CostModel
from engine.errors import ConfigError
from engine.request import SLO
from global_scheduler.goodput import Arm, Parallel
from global_scheduler.placement import DECODE, PREFILL
from simulator.network import LinkSettings
from simulator.report import summarise
from simulator.setup import Setup
from simulator.simulate import simulate
from simulator.workload.arrivals import Arrival

FREE_LINKS = LinkSettings(bandwidth=1e15, latency=0.0)


@dataclass(frozen=True, slots=True)
class Free:
    """The cost of a phase that is not looked at: next to nothing, but time goes on."""

    def seconds(self, batch: Batch) -> float:
        return 1e-6


class Simulated:
    """A global_scheduler.goodput.Measure. `costs` are of one instance, by how it is spread over GPUs.

    `hardware` is of one GPU: an instance of more has so many times the KV cache.
    """

    def __init__(
        self,
        config: Config,
        hardware: Hardware,
        costs: Mapping[Parallel, CostModel],
        arrivals: Sequence[Arrival],
        slo: SLO,
    ) -> None:
        self._config = config
        self._hardware = hardware
        self._costs = costs
        self._arrivals = arrivals
        self._slo = slo
        first, last = arrivals[0].at, arrivals[-1].at
        if last <= first:
            raise ConfigError("the trace has no two requests at different times: a rate cannot be told")
        self._rate = (len(arrivals) - 1) / (last - first)
        self.runs = 0

    def __call__(self, arm: Arm, rate: float) -> float:
        setup = setup_of(sized(self._config, arm), self._hardware)
        shapes = {PREFILL: arm.prefill, DECODE: arm.decode}
        return self._attained(_shaped(setup, self._costs, shapes), rate, self._slo)

    def alone(self, role: str, parallel: Parallel, rate: float) -> float:
        """One instance of the role; the other phase costs nothing and its objective does not count."""
        setup = setup_of(sized(self._config, Arm(1, 1)), replace(self._hardware, links=FREE_LINKS))
        free = {role: self._costs[parallel], (DECODE if role == PREFILL else PREFILL): Free()}
        pools = tuple(
            replace(
                pool, cost=free[pool.role], blocks=pool.blocks * (parallel.gpus if pool.role == role else 64)
            )
            for pool in setup.pools
        )
        slo = SLO(self._slo.ttft, None) if role == PREFILL else SLO(None, self._slo.tpot)
        return self._attained(replace(setup, pools=pools), rate, slo)

    def _attained(self, setup: Setup, rate: float, slo: SLO) -> float:
        self.runs += 1
        speed = rate / self._rate
        arrivals = [replace(one, at=one.at / speed) for one in self._arrivals]
        report = summarise(simulate(setup, arrivals), ttft=slo.ttft, tpot=slo.tpot)
        return float(report["slo"]["attainment"])


def settings_of(config: Config, arm: Arm) -> dict[str, object]:
    """What an arrangement changes about a config, by dotted path."""
    pools = config.pools
    changes: dict[str, object] = {}
    for name, pool, count in (
        (PREFILL, pools.prefill, arm.prefills),
        (DECODE, pools.decode, arm.decodes),
    ):
        changes[f"pools.{name}.replicas"] = count
        changes[f"pools.{name}.min_replicas"] = min(pool.min_replicas, count)
        changes[f"pools.{name}.max_replicas"] = max(pool.max_replicas, count)
    return changes


def refuse_what_is_not_built(arm: Arm) -> None:
    """Raises ConfigError for instances that no config can ask for yet."""
    for name, parallel in ((PREFILL, arm.prefill), (DECODE, arm.decode)):
        for kind, degree in (("tensor", parallel.tensor), ("pipeline", parallel.pipeline)):
            if degree > 1:
                raise ConfigError(
                    f"the best plan has {kind} parallelism {degree} in the {name} pool, which instances do "
                    f"not have yet: plan with --{kind} 1"
                )


def sized(config: Config, arm: Arm) -> Config:
    """The config with the pools of an arrangement, which keep their size."""
    still = {f"pools.{name}.autoscale.enabled": False for name in (PREFILL, DECODE)}
    return with_settings(config, settings_of(config, arm) | still)


def _shaped(setup: Setup, costs: Mapping[Parallel, CostModel], shapes: Mapping[str, Parallel]) -> Setup:
    pools = tuple(
        replace(
            pool,
            cost=costs[shapes[pool.role]],
            blocks=pool.blocks * shapes[pool.role].gpus,
            gpus=float(shapes[pool.role].gpus),
        )
        for pool in setup.pools
        if pool.replicas
    )
    return replace(setup, pools=pools)
