"""Each policy of a config switched off in turn: what it is worth on one trace, in the simulator."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import count
from typing import Any

from cluster.config import Config
from cluster.simulation import Hardware, setup_of
from global_scheduler.placement import Placement
from global_scheduler.scheduler import Scheduler
from global_scheduler.view import Summary
from simulator.report import summarise
from simulator.setup import Setup
from simulator.simulate import simulate
from simulator.workload.arrivals import Arrival


@dataclass(frozen=True, slots=True)
class Policy:
    """`off` are the settings without it; `without` changes the cluster where no setting does.

    `on` says whether a config has it at all.
    """

    name: str
    off: Mapping[str, Any]
    without: Callable[[Setup], Setup] = lambda setup: setup
    on: Callable[[Config], bool] = lambda config: True


def _anywhere(setup: Setup) -> Setup:
    """Instances of each role in turn."""
    turns = count()

    def place(scheduler: Scheduler, summary: Summary, now: float) -> Placement:
        placement = scheduler.place(summary, now)
        turn = next(turns)
        mine = {}
        for role in ("prefill", "decode"):
            names = [load.instance for load in scheduler.view.loads(now) if load.role == role]
            mine[role] = names[turn % len(names)] if names else placement.decode
        local = placement.prefill == placement.decode
        return Placement(mine["decode"] if local else mine["prefill"], mine["decode"], "it is its turn")

    return replace(setup, dispatch=place)


LOCAL_OFF = {
    "scheduler.local_prefill": "tokens", "scheduler.local_prefill_tokens": 0, "scheduler.admission": "queue",
}  # fmt: skip

POLICIES = (
    Policy("the queue", {"engine.queue": "fcfs"}),
    Policy("the batch policy", {"engine.batch": "auto"}),
    Policy("reserving the longest", {"engine.admission": "paged"}),
    Policy("host memory", {"engine.host_memory": 0}),
    Policy(
        "swapping ahead", {"engine.swap": "on_demand"}, on=lambda config: bool(config.engine.host_memory)
    ),
    Policy("the prefix cache", {"engine.prefix_cache": False}),
    Policy("prefill where it decodes", LOCAL_OFF),
    Policy("early rejection", {"scheduler.admission": "queue"}),
    Policy("placement by load", {}, _anywhere),
    Policy("live migration", {}, lambda setup: replace(setup, rescheduling=None)),
    Policy("autoscaling of prefill", {"pools.prefill.autoscale.enabled": False}),
    Policy("autoscaling of decode", {"pools.decode.autoscale.enabled": False}),
)  # fmt: skip


def ablate(
    config: Config,
    hardware: Hardware,
    arrivals: Sequence[Arrival],
    objectives: Mapping[str, float | None],
    max_tokens: int | None = None,
) -> dict[str, dict[str, Any]]:
    """Reports by name: `everything`, then `without …` for each policy that the config has switched on."""
    runs = {"everything": setup_of(config, hardware, max_tokens)}
    for policy in POLICIES:
        changed = _changed(config, policy.off)
        if policy.on(config) and (changed != config or not policy.off):
            runs[f"without {policy.name}"] = policy.without(setup_of(changed, hardware, max_tokens))
    return {name: summarise(simulate(setup, arrivals), **objectives) for name, setup in runs.items()}


def _changed(config: Config, settings: Mapping[str, Any]) -> Config:
    values = config.model_dump()
    for path, value in settings.items():
        *sections, last = path.split(".")
        section = values
        for name in sections:
            section = section[name]
        section[last] = value
    return Config.model_validate(values)
