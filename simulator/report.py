"""What a simulation came to, as one value that is the same for the same input, byte for byte.

Times are in seconds. `tbt` is over all gaps between two tokens, not over requests; attainment is joint: a
request counts when it met both objectives. `service` of a tenant is prompt tokens + 2 × output tokens.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from typing import Any

import numpy as np

from simulator.cluster import SimulatedCluster
from simulator.records import Record

SCHEMA = "tandem.simulation/1"
QUANTILES = {"p50": 0.5, "p90": 0.9, "p95": 0.95, "p99": 0.99}


def distribution(values: Iterable[float], weights: Iterable[float] | None = None) -> dict[str, float]:
    """Mean, quantiles and maximum; {} of nothing."""
    array = np.fromiter(values, dtype=np.float64)
    if not len(array):
        return {}
    times = np.ones_like(array) if weights is None else np.fromiter(weights, dtype=np.float64)
    order = np.argsort(array, kind="stable")
    ordered, reached = array[order], np.cumsum(times[order])
    at = {
        name: float(ordered[min(np.searchsorted(reached, q * reached[-1]), len(array) - 1)])
        for name, q in QUANTILES.items()
    }
    return {"mean": float(np.average(array, weights=times)), **at, "max": float(ordered[-1])}


def summarise(
    cluster: SimulatedCluster, *, ttft: float | None = None, tpot: float | None = None
) -> dict[str, Any]:
    """The report; `ttft` and `tpot` are the objectives, if there are any."""
    records = cluster.records
    every = list(records.records.values())
    done = [record for record in every if record.finished]
    end = max((record.last for record in done), default=0.0)
    begin = min((record.arrival.at for record in every), default=0.0)
    seconds = max(end - begin, 1e-9)
    gpus = sum(member.pool.gpus for member in cluster.members.values())
    met = [record for record in done if _met(record, ttft, tpot)]
    return {
        "schema": SCHEMA,
        "requests": {
            "arrived": len(every),
            "finished": len(done),
            "refused": sum(bool(record.refused) for record in every),
            "lost": sum(not record.finished and not record.refused for record in every),
            "duplicated_tokens": records.duplicated,
        },
        "seconds": seconds,
        "ttft": distribution(record.ttft for record in done),
        "tpot": distribution(record.tpot for record in done if record.tokens > 1),
        "tbt": distribution(records.gaps, records.weights),
        "e2e": distribution(record.e2e for record in done),
        "per_token": distribution(record.e2e / record.tokens for record in done),
        "slo": {
            "ttft": ttft,
            "tpot": tpot,
            "attainment": len(met) / len(every) if every else 0.0,
            "ttft_attainment": _share(done, every, ttft, None),
            "tpot_attainment": _share(done, every, None, tpot),
        },
        "throughput": {
            "requests": len(done) / seconds,
            "prompt_tokens": sum(record.arrival.prompt_tokens for record in done) / seconds,
            "output_tokens": sum(record.tokens for record in done) / seconds,
        },
        "goodput_per_gpu": len(met) / seconds / gpus if gpus else 0.0,
        "gpus": gpus,
        "gpu_hours": gpus_used(cluster) / 3600,
        "pools": _pools(cluster),
        "handoffs": {
            "moved": cluster.handoffs,
            "kept": cluster.handoffs_failed,
            "bytes": cluster.network.transferred,
        },
        "migrations": {
            "moved": sum(move.moved for move in cluster.moves),
            "kept": sum(not move.moved for move in cluster.moves),
            "downtime": distribution(move.downtime for move in cluster.moves if move.moved),
        },
        "preemptions": sum(record.preemptions for record in done),
        "swaps": _swaps(cluster),
        "scale_events": [asdict(event) for event in cluster.scale_events],
        "invariants": _invariants(cluster),
        "tenants": _tenants(done),
    }


def as_json(report: Mapping[str, Any]) -> str:
    """Keys in order, numbers with nine significant digits: equal runs give equal bytes."""
    return json.dumps(_rounded(report), sort_keys=True, indent=2) + "\n"


def gpus_used(cluster: SimulatedCluster) -> float:
    """GPU seconds, from each instance's start until it was taken away, or now."""
    now = cluster.clock.now()
    every = (*cluster.members.values(), *cluster.retired)
    return sum(member.pool.gpus * (min(member.until, now) - member.instance.born) for member in every)


def _met(record: Record, ttft: float | None, tpot: float | None) -> bool:
    return (ttft is None or record.ttft <= ttft) and (tpot is None or record.tpot <= tpot)


def _share(done: list[Record], every: list[Record], ttft: float | None, tpot: float | None) -> float:
    return sum(_met(record, ttft, tpot) for record in done) / len(every) if every else 0.0


def _pools(cluster: SimulatedCluster) -> dict[str, dict[str, float]]:
    pools: dict[str, dict[str, float]] = {}
    now = cluster.clock.now()
    for member in cluster.members.values():
        status = member.instance.status()
        pool = pools.setdefault(
            member.pool.role,
            {"instances": 0, "busy": 0.0, "steps": 0, "preemptions": 0, "chunks": 0, "prefix_hit_tokens": 0},
        )
        pool["instances"] += 1
        pool["busy"] += member.instance.busy / max(now - member.instance.born, 1e-9)
        pool["steps"] += status.steps
        pool["preemptions"] += status.preemptions
        pool["chunks"] += status.chunks
        pool["prefix_hit_tokens"] += status.prefix_hits
    for pool in pools.values():
        pool["busy"] /= pool["instances"]
    return pools


def _swaps(cluster: SimulatedCluster) -> dict[str, float]:
    """Blocks that went to host memory and came back, and the share of the time that it took."""
    tiers = [member.instance.core.tiers for member in (*cluster.members.values(), *cluster.retired)]
    seconds = sum((one.swapped_out + one.swapped_in) * one.settings.seconds for one in tiers)
    return {
        "out": sum(one.swapped_out for one in tiers),
        "in": sum(one.swapped_in for one in tiers),
        "share": seconds / max(cluster.clock.now(), 1e-9) / max(len(tiers), 1),
    }


def _invariants(cluster: SimulatedCluster) -> dict[str, bool]:
    """What must hold of every run; `check` has raised if a ledger does not."""
    cluster.check()
    records = cluster.records
    done = [record for record in records.records.values() if record.finished]
    idle = [one.instance.core for one in cluster.members.values() if not one.instance.core.running]
    return {
        "ledgers_balance": True,
        "every_token_once": records.duplicated == 0,
        "every_answer_whole": all(
            record.tokens == cluster.setup.answer_tokens(record.arrival) for record in done
        ),
        "idle_instances_hold_nothing": all(
            core.pool.used == core.pool.reserved == core.tiers.used == 0
            for core in idle
            if not len(core.queue)
        ),
    }


def _tenants(done: list[Record]) -> dict[str, dict[str, float]]:
    tenants: dict[str, dict[str, float]] = {}
    for record in done:
        tenant = tenants.setdefault(record.arrival.tenant, {"requests": 0, "service": 0, "ttft": 0.0})
        tenant["requests"] += 1
        tenant["service"] += record.arrival.prompt_tokens + 2 * record.tokens
        tenant["ttft"] += record.ttft
    for tenant in tenants.values():
        tenant["ttft"] /= tenant["requests"]
    return tenants


def _rounded(value: Any) -> Any:
    if isinstance(value, float):
        return float(f"{value:.9g}")
    if isinstance(value, Mapping):
        return {key: _rounded(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_rounded(one) for one in value]
    return value
