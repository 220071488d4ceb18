"""From the names in the config to the objects: who waits first, what shares a step, and who goes where.

The same objects are put into the actors and into the simulator.
"""

from __future__ import annotations

from collections.abc import Callable

from cluster.config import Config, DecodePool, PoolConfig
from cluster.config_engine import EngineConfig
from cluster.role_policy import RolePolicy, of_roles
from decode_pool.continuous_batching import ContinuousBatching
from decode_pool.slice_batches import SliceBatches, slice_time
from decode_pool.stall_free import StallFree
from engine.batch import BatchPolicy, WaitingQueue
from engine.cost_model import LinearCost
from engine.errors import ConfigError
from engine.queues.fair import FairQueue
from engine.queues.fcfs import FCFSQueue
from engine.queues.mlfq import Levels, MultiLevelQueue
from engine.request import SLO
from engine.reserve_max import ReserveMax
from engine.service import Cost, Counters, MovingAverage, linear, profiled
from engine.shared_service import SharedCounters
from engine.tiers import TierSettings
from global_scheduler.autoscaling import AutoscalingSettings
from global_scheduler.journey import Patience
from global_scheduler.placement import DECODE, PREFILL, PlacementSettings
from global_scheduler.prediction import Predictor
from global_scheduler.rescheduling import ReschedulingSettings
from global_scheduler.scheduler import SchedulerSettings
from prefill_pool.chunked_prefill import ChunkedPrefill
from prefill_pool.decode_maximal import DecodeMaximal

BATCH: dict[str, dict[str, Callable[[EngineConfig], BatchPolicy]]] = {
    "auto": {
        PREFILL: lambda engine: ChunkedPrefill(engine.token_budget, engine.block_size),
        DECODE: lambda engine: ContinuousBatching(engine.token_budget),
    },
    "stall_free": {
        PREFILL: lambda engine: ChunkedPrefill(engine.token_budget, engine.block_size),
        DECODE: lambda engine: StallFree(step_cost(engine), engine.tbt, tile=16, most=engine.token_budget),
    },
    "decode_maximal": {
        PREFILL: lambda engine: DecodeMaximal(engine.token_budget, engine.block_size),
        DECODE: lambda engine: DecodeMaximal(engine.token_budget, engine.block_size),
    },
    "slices": {
        PREFILL: lambda engine: ChunkedPrefill(engine.token_budget, engine.block_size),
        DECODE: lambda engine: SliceBatches(
            slice_time(step_cost(engine)),
            steps=engine.slice_steps,
            most=engine.max_sequences,
            budget=engine.token_budget,
        ),
    },
}

TENANT_COST: dict[str, Cost] = {"linear": linear(), "profiled": profiled}

QUEUE: dict[str, Callable[[EngineConfig], WaitingQueue]] = {
    "fcfs": lambda engine: FCFSQueue(),
    "fair": lambda engine: FairQueue(tenant_counters(engine)),
}


def tenant_account(engine: EngineConfig) -> Counters:
    """What every tenant has been served; queues that share it are fair together."""
    return Counters(TENANT_COST[engine.tenant_cost], engine.tenant_weights, _predictor(engine))


def tenant_counters(engine: EngineConfig) -> SharedCounters:
    """What every tenant has been served, of one instance that tells it to the account of all."""
    return SharedCounters(TENANT_COST[engine.tenant_cost], engine.tenant_weights, _predictor(engine))


def _predictor(engine: EngineConfig) -> MovingAverage | None:
    return MovingAverage() if engine.tenant_prediction == "moving_average" else None


def tier_settings(engine: EngineConfig, block_nbytes: int) -> TierSettings:
    """The host memory of an instance whose KV blocks have so many bytes."""
    return TierSettings(
        slots=engine.host_memory // block_nbytes,
        seconds=engine.step_cost.per_swap * engine.block_size / 1e3,
        proactive=engine.swap == "ahead",
    )


def batch_policy(engine: EngineConfig, role: str) -> BatchPolicy:
    """What shares a step in an instance of that role. Raises ConfigError."""
    return BATCH[engine.batch][role](engine)


def role_policy(engine: EngineConfig, role: str) -> RolePolicy:
    """What shares a step, in either role. Raises ConfigError."""
    return of_roles({each: batch_policy(engine, each) for each in (PREFILL, DECODE)}, role)


def arrange(engine: EngineConfig, policy: BatchPolicy, slots: int) -> tuple[WaitingQueue, BatchPolicy]:
    """The queue, and `policy` with what admission and queue put around it; `slots` of KV are there."""
    for each in policy.policies.values() if isinstance(policy, RolePolicy) else (policy,):
        if isinstance(each, SliceBatches):
            each.slots = slots
    if engine.admission == "reserve_max":
        policy = ReserveMax(policy)
    if engine.queue == "mlfq":
        both = MultiLevelQueue(Levels(batch=engine.max_sequences), policy, step_cost(engine))
        return both, both
    return QUEUE[engine.queue](engine), policy


def step_cost(engine: EngineConfig) -> LinearCost:
    """Raises ConfigError where it was not measured."""
    cost = engine.step_cost
    if cost.per_token <= 0:
        raise ConfigError(
            "engine.step_cost.per_token is 0, and `batch: stall_free`, `batch: slices`, `queue: mlfq` and "
            "`local_prefill: predicted` decide by it: measure steps with `tandem profile` and set "
            "engine.step_cost"
        )
    return LinearCost(
        cost.base / 1e3, cost.floor / 1e3, cost.per_token / 1e3, cost.per_context / 1e3, cost.tile
    )


def patience(config: Config) -> Patience:
    scheduler = config.scheduler
    return Patience(config.gateway.retries + 1, scheduler.place_timeout, scheduler.recovery_timeout)


def scheduler_settings(config: Config) -> SchedulerSettings:
    """Who goes where, and who is let in. Raises ConfigError where what decides by step costs has none."""
    scheduler, engine = config.scheduler, config.engine
    predicted = scheduler.local_prefill == "predicted"
    early = scheduler.admission == "deadline"
    if early and not predicted:
        raise ConfigError(
            "scheduler.admission is `deadline`, which needs predictions: set scheduler.local_prefill to "
            "`predicted`"
        )
    predictor = Predictor(step_cost(engine), engine.token_budget, scheduler.handoff) if predicted else None
    return SchedulerSettings(
        placement=PlacementSettings(
            local_prefill_tokens=scheduler.local_prefill_tokens,
            ranking=scheduler.placement,
            predictor=predictor,
            slo=SLO(config.observe.slo_ttft, config.observe.slo_tpot),
            headroom=scheduler.headroom_blocks,
            adapter_tokens=scheduler.adapter_tokens,
        ),
        queue_limit=engine.queue_limit,
        settle=scheduler.place_timeout,
        stale=max(3.0, 8 * config.control.beat),
        early_rejection=early,
    )


def rescheduling_settings(config: Config) -> ReschedulingSettings:
    """When instances of one role even out their load."""
    scheduler = config.scheduler
    return ReschedulingSettings(
        low=scheduler.crowded_below,
        high=scheduler.roomy_above,
        rest=scheduler.rest,
        headroom=scheduler.headroom_blocks,
    )


def autoscaling_settings(pool: PoolConfig, least: int, most: int) -> AutoscalingSettings:
    """How a pool's size follows its load, within bounds that may have been changed since the start.

    Of prefill there is one at least: requests do not miss it, so that nothing would tell when to have one.
    """
    scale = pool.autoscale
    return AutoscalingSettings(
        least=least if isinstance(pool, DecodePool) else max(1, least),
        most=most,
        out_below=scale.out_below,
        in_above=scale.in_above,
        attainment=scale.attainment,
        out_patience=scale.out_patience,
        in_patience=scale.in_patience,
        cool_down=scale.cool_down,
        warm_up=scale.warm_up,
        step=scale.step,
    )
