"""From the names in the config to the objects: who waits first, and what shares a step.

The same objects are put into the actors and into the simulator.
"""

from __future__ import annotations

from collections.abc import Callable

from cluster.config_engine import EngineConfig
from cluster.role_policy import RolePolicy
from decode_pool.continuous_batching import ContinuousBatching
from decode_pool.stall_free import StallFree
from engine.batch import BatchPolicy, WaitingQueue
from engine.cost_model import LinearCost
from engine.errors import ConfigError
from engine.queues.fair import FairQueue
from engine.queues.fcfs import FCFSQueue
from engine.queues.mlfq import Levels, MultiLevelQueue
from engine.reserve_max import ReserveMax
from engine.service import Counters
from global_scheduler.placement import DECODE, PREFILL
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
}

QUEUE: dict[str, Callable[[EngineConfig], WaitingQueue]] = {
    "fcfs": lambda engine: FCFSQueue(),
    "fair": lambda engine: FairQueue(Counters(weights=engine.tenant_weights)),
}


def batch_policy(engine: EngineConfig, role: str) -> BatchPolicy:
    """What shares a step in an instance of that role. Raises ConfigError."""
    return BATCH[engine.batch][role](engine)


def role_policy(engine: EngineConfig, role: str) -> RolePolicy:
    """What shares a step, in either role. Raises ConfigError."""
    return RolePolicy({each: batch_policy(engine, each) for each in (PREFILL, DECODE)}, role)


def arrange(engine: EngineConfig, policy: BatchPolicy, slots: int) -> tuple[WaitingQueue, BatchPolicy]:
    """The queue, and `policy` with what admission and queue put around it; `slots` of KV are there."""
    if engine.admission == "reserve_max":
        policy = ReserveMax(policy, slots)
    if engine.queue == "mlfq":
        both = MultiLevelQueue(Levels(batch=engine.max_sequences), policy, step_cost(engine))
        return both, both
    return QUEUE[engine.queue](engine), policy


def step_cost(engine: EngineConfig) -> LinearCost:
    """Raises ConfigError where it was not measured."""
    cost = engine.step_cost
    if cost.per_token <= 0:
        raise ConfigError(
            "engine.step_cost.per_token is 0, and `batch: stall_free` and `queue: mlfq` decide by it: "
            "measure steps with `tandem bench engine` and set engine.step_cost"
        )
    return LinearCost(
        cost.base / 1e3, cost.floor / 1e3, cost.per_token / 1e3, cost.per_context / 1e3, cost.tile
    )
