"""From the config that a cluster runs with to the cluster that is simulated: the same pools and policies."""

from __future__ import annotations

from dataclasses import dataclass

from cluster.config import Config
from cluster.policies import (
    arrange,
    autoscaling_settings,
    batch_policy,
    patience,
    rescheduling_settings,
    scheduler_settings,
    tenant_account,
    tier_settings,
)
from cluster.scaling import forecast_of
from engine.batch import BatchPolicy, WaitingQueue
from engine.cost_model import CostModel
from engine.queues.fair import FairQueue
from engine.request import SLO
from global_scheduler.autoscaling import AutoscalingSettings
from global_scheduler.placement import DECODE, PREFILL
from simulator.network import LinkSettings
from simulator.setup import PoolSetup, Setup


@dataclass(frozen=True, slots=True)
class Hardware:
    """What a config does not say: an instance's steps, KV cache and GPUs, and the links.

    `kv_tokens` are the tokens that the cache of one instance holds, `kv_bytes` the bytes of one token.
    """

    costs: dict[str, CostModel]
    kv_tokens: int
    kv_bytes: int
    links: LinkSettings
    gpus: float = 1.0
    overhead: float = 0.0


def setup_of(config: Config, hardware: Hardware, max_tokens: int | None = None) -> Setup:
    """The cluster of a config. Every request asks for `max_tokens`, or for its answer's.

    Raises ConfigError for a policy that lacks its measurements.
    """
    engine, scheduler = config.engine, config.scheduler
    counters = tenant_account(engine)
    pools = {PREFILL: config.pools.prefill, DECODE: config.pools.decode}
    period = min(pool.autoscale.period for pool in pools.values())

    def queued(role: str) -> tuple[WaitingQueue, BatchPolicy]:
        queue, policy = arrange(engine, batch_policy(engine, role), hardware.kv_tokens)
        return (FairQueue(counters), policy) if isinstance(queue, FairQueue) else (queue, policy)

    def pool(role: str) -> PoolSetup:
        scale = pools[role].autoscale
        return PoolSetup(
            role=role,
            replicas=pools[role].replicas,
            cost=hardware.costs[role],
            blocks=hardware.kv_tokens // engine.block_size,
            arrange=lambda: queued(role),
            block_size=engine.block_size,
            max_sequences=engine.max_sequences,
            queue_limit=engine.queue_limit,
            prefix_cache=engine.prefix_cache,
            gpus=hardware.gpus,
            overhead=hardware.overhead,
            tiers=tier_settings(engine, hardware.kv_bytes * engine.block_size),
            forecast=lambda: forecast_of(scale, period),
            horizon=round(scale.horizon / period),
            lends=scale.role_change,
        )

    return Setup(
        pools=(pool(PREFILL), pool(DECODE)),
        links=hardware.links,
        kv_bytes=hardware.kv_bytes,
        max_length=config.model.max_length or 1 << 20,
        max_tokens=max_tokens,
        scheduler=scheduler_settings(config),
        patience=patience(config),
        beat=config.control.beat,
        rescheduling=rescheduling_settings(config),
        reschedule_every=scheduler.rebalance_period,
        autoscaling=_autoscaling(config),
        autoscale_every=period,
        objectives=SLO(config.observe.slo_ttft, config.observe.slo_tpot),
        window=config.observe.window,
    )


def _autoscaling(config: Config) -> dict[str, AutoscalingSettings]:
    pools = {PREFILL: config.pools.prefill, DECODE: config.pools.decode}
    return {
        name: autoscaling_settings(pool, pool.min_replicas, pool.max_replicas)
        for name, pool in pools.items()
        if pool.autoscale.enabled
    }
