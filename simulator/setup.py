"""What is simulated: pools of instances, their links, and the policies, all as values."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from engine.batch import BatchPolicy, WaitingQueue
from engine.cost_model import CostModel
from engine.queues.fcfs import FCFSQueue
from engine.request import SLO
from engine.tiers import TierSettings
from global_scheduler.autoscaling import AutoscalingSettings
from global_scheduler.forecast import Constant, Forecast
from global_scheduler.journey import Patience
from global_scheduler.placement import Placement
from global_scheduler.rescheduling import ReschedulingSettings
from global_scheduler.scheduler import Scheduler, SchedulerSettings
from global_scheduler.view import Summary
from simulator.network import LinkSettings
from simulator.workload.arrivals import Arrival


def fcfs(policy: Callable[[], BatchPolicy]) -> Callable[[], tuple[WaitingQueue, BatchPolicy]]:
    """First come, first served, with a new batch policy for each instance."""
    return lambda: (FCFSQueue(), policy())


@dataclass(frozen=True, slots=True)
class PoolSetup:
    """`replicas` instances of `gpus` GPUs each. `role` is what the scheduler knows of: prefill or decode.

    `blocks` of `block_size` tokens are the KV cache of one instance. `arrange` makes the queue and the
    batch policy of one instance. `overhead` is added to each step, `start_up` is how long a new one takes,
    both in seconds. `tiers` is its host memory. Autoscaling foretells its load `horizon` looks ahead by
    `forecast`; with `lends` an instance may change to or from another role.
    """

    role: str
    replicas: int
    cost: CostModel
    blocks: int
    arrange: Callable[[], tuple[WaitingQueue, BatchPolicy]]
    block_size: int = 16
    max_sequences: int = 256
    queue_limit: int = 1_000_000
    prefix_cache: bool = False
    watermark: float = 0.01
    gpus: float = 1.0
    overhead: float = 0.0
    start_up: float = 30.0
    tiers: TierSettings = field(default_factory=TierSettings)
    forecast: Callable[[], Forecast] = Constant
    horizon: int = 0
    lends: bool = True


@dataclass(frozen=True, slots=True)
class Setup:
    """A cluster.

    `max_tokens` is what every request asks for, and longer answers end there; None asks for what the answer
    turns out to have. `kv_bytes` is the size of one token's KV. `beat` is how often instances report.
    `rescheduling` and the `autoscaling` of the pools named in it are looked at every `reschedule_every` and
    `autoscale_every` seconds; autoscaling also goes by the `objectives` of the requests that ended in the
    last `window` seconds.
    `urgent_tenants` have priority 1. `dispatch` takes the place of the scheduler's own placement, for
    comparison.
    """

    pools: tuple[PoolSetup, ...]
    links: LinkSettings = field(default_factory=LinkSettings)
    kv_bytes: int = 131_072
    max_length: int = 1 << 20
    max_tokens: int | None = None
    scheduler: SchedulerSettings = field(default_factory=lambda: SchedulerSettings(queue_limit=1_000_000))
    patience: Patience = field(default_factory=lambda: Patience(place_timeout=1e9, recovery_timeout=1e9))
    beat: float = 0.25
    rescheduling: ReschedulingSettings | None = None
    reschedule_every: float = 0.25
    autoscaling: Mapping[str, AutoscalingSettings] = field(default_factory=dict)
    autoscale_every: float = 5.0
    objectives: SLO = field(default_factory=SLO)
    window: float = 60.0
    urgent_tenants: frozenset[str] = frozenset()
    dispatch: Callable[[Scheduler, Summary, float], Placement] | None = None
    coasting: bool = True

    def answer_tokens(self, arrival: Arrival) -> int:
        """How long its answer becomes: as it turns out, or as far as it may."""
        most = arrival.output_tokens if self.max_tokens is None else self.max_tokens
        return min(arrival.output_tokens, most, self.max_length - arrival.prompt_tokens)
