"""Metrics that are read off the cluster's status at each scrape: queues, KV, pools."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import accumulate

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from cluster import control_pb2 as pb
from cluster.migrations import DOWNTIMES, STAGES

CAUSES = ("operator", "drain", "role", "scale_down", "shutdown", "rebalance", "restart")
OUTCOMES = ("committed", "aborted")
"""Both are there from the beginning, so that a rate over them finds something before the first move."""

STEP_TOKENS = (1, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384)

REMEMBERED = 4096
"""Instances out of sight of which the last steps are known: they may only be so while a controller starts."""

_VLLM = ["model_name", "engine"]


class StatusCollector(Collector):
    """Gauges and counters of every instance; counters fall to 0 with the instance that counted."""

    def __init__(self, model: str, status: Callable[[], pb.ClusterStatus], most: int) -> None:
        """`most` instances have series of their own; what the others do is in no series."""
        self._model = model
        self._status = status
        self._most = most
        self._steps: dict[str, tuple[int, int]] = {}
        self._buckets = dict.fromkeys((*map(float, STEP_TOKENS), float("inf")), 0)
        self._sum = 0.0

    def describe(self) -> Iterable[Metric]:
        """Nothing: the names depend on no status, but asking would need one."""
        return ()

    def collect(self) -> Iterator[Metric]:
        status = self._status()
        instances = [each for each in status.instances if each.HasField("status")][: self._most]
        yield from self._vllm(instances)
        yield self._iteration_tokens(instances)
        yield from self._pools(status)
        yield from self._kv(instances)
        yield from _migrations(status.migrations)

    def _vllm(self, instances: list[pb.Instance]) -> Iterator[Metric]:
        def gauge(name: str, text: str, value: Callable[[pb.InstanceStatus], float]) -> Metric:
            family = GaugeMetricFamily(name, text, labels=_VLLM)
            for instance in instances:
                family.add_metric([self._model, instance.name], value(instance.status))
            return family

        def counter(name: str, text: str, value: Callable[[pb.InstanceStatus], float]) -> Metric:
            family = CounterMetricFamily(name, text, labels=_VLLM)
            for instance in instances:
                family.add_metric([self._model, instance.name], value(instance.status))
            return family

        yield gauge("vllm:num_requests_running", "Sequences that run.", lambda s: s.running)
        yield gauge("vllm:num_requests_waiting", "Sequences that wait.", lambda s: s.waiting)
        waiting = GaugeMetricFamily(
            "vllm:num_requests_waiting_by_reason", "Sequences that wait, by why.", labels=[*_VLLM, "reason"]
        )
        cache = GaugeMetricFamily(
            "vllm:cache_config_info",
            "Shape of the KV cache.",
            labels=[*_VLLM, "block_size", "num_gpu_blocks"],
        )
        lora = GaugeMetricFamily(
            "vllm:lora_requests_info",
            "Adapters that run or wait.",
            labels=["max_lora", "running_lora_adapters", "waiting_lora_adapters"],
        )
        lora.add_metric(["0", "", ""], 1)
        for each in instances:
            waiting.add_metric([self._model, each.name, "capacity"], each.status.waiting)
            shape = [str(each.status.block_size), str(each.status.blocks_total)]
            cache.add_metric([self._model, each.name, *shape], 1)
        yield from (waiting, cache, lora)
        yield gauge("vllm:kv_cache_usage_perc", "Share of the KV blocks in use, 0 to 1.", _usage)
        yield counter("vllm:prefix_cache_queries", "Prompt tokens looked up.", lambda s: s.prefix_queries)
        yield counter("vllm:prefix_cache_hits", "Prompt tokens found.", lambda s: s.prefix_hits)
        yield counter("vllm:num_preemptions", "Sequences preempted.", lambda s: s.preemptions)
        for name in ("drafts", "draft_tokens", "accepted_tokens"):
            yield counter(f"vllm:spec_decode_num_{name}", "Speculative decoding; none yet.", lambda s: 0)

    def _iteration_tokens(self, instances: list[pb.Instance]) -> Metric:
        """Tokens per step: the mean of the steps between two scrapes counts for each of them.

        What an instance did before it was first seen is the past: nobody knows when it was.
        """
        for each in instances:
            tokens = each.status.prompt_tokens + each.status.output_tokens
            steps_before, tokens_before = self._steps.pop(each.name, (each.status.steps, tokens))
            steps = each.status.steps - steps_before
            if steps > 0 and tokens >= tokens_before:
                mean = (tokens - tokens_before) / steps
                self._sum += tokens - tokens_before
                for bound in self._buckets:
                    self._buckets[bound] += steps if mean <= bound else 0
            self._steps[each.name] = each.status.steps, tokens
        while len(self._steps) > len(instances) + REMEMBERED:
            del self._steps[next(iter(self._steps))]
        family = HistogramMetricFamily("vllm:iteration_tokens_total", "Tokens of a step.", labels=_VLLM)
        buckets = [("+Inf" if bound == float("inf") else str(bound), n) for bound, n in self._buckets.items()]
        family.add_metric([self._model, "0"], buckets, self._sum)
        return family

    def _pools(self, status: pb.ClusterStatus) -> Iterator[Metric]:
        replicas = GaugeMetricFamily("tandem_pool_replicas", "Instances of a pool.", labels=["pool", "state"])
        target = GaugeMetricFamily("tandem_pool_target_replicas", "Instances wanted.", labels=["pool"])
        for pool in status.pools:
            for state in ("ready", "starting", "draining"):
                replicas.add_metric([pool.name, state], getattr(pool, state))
            target.add_metric([pool.name], pool.target)
        roles = GaugeMetricFamily(
            "tandem_instance_role_info", "Role of an instance.", labels=["instance", "role"]
        )
        for each in list(status.instances)[: self._most]:
            roles.add_metric([each.name, each.role], 1)
        yield from (replicas, target, roles)

    def _kv(self, instances: list[pb.Instance]) -> Iterator[Metric]:
        blocks = GaugeMetricFamily("tandem_kv_blocks", "KV blocks.", labels=["instance", "state"])
        hits = GaugeMetricFamily(
            "tandem_prefix_hit_ratio", "Share of prompt tokens found.", labels=["instance"]
        )
        for each in instances:
            for state in ("free", "used", "cached", "reserved"):
                blocks.add_metric([each.name, state], getattr(each.status, f"blocks_{state}"))
            queries = each.status.prefix_queries
            hits.add_metric([each.name], each.status.prefix_hits / queries if queries else 0)
        yield from (blocks, hits)


def _usage(status: pb.InstanceStatus) -> float:
    return (status.blocks_used + status.blocks_reserved) / status.blocks_total if status.blocks_total else 0.0


def _migrations(totals: pb.MigrationTotals) -> Iterator[Metric]:
    """Moves since the controller began; a controller that was started again counts from 0."""
    counts = CounterMetricFamily(
        "tandem_migrations", "Moves of requests between instances.", labels=["reason", "outcome"]
    )
    known = {(one.cause, one.outcome): one.count for one in totals.counts}
    for cause, outcome in sorted({(cause, outcome) for cause in CAUSES for outcome in OUTCOMES} | set(known)):
        counts.add_metric([cause, outcome], known.get((cause, outcome), 0))
    yield counts
    downtime = HistogramMetricFamily(
        "tandem_migration_downtime_seconds", "Time in which a request that moved drew no token."
    )
    downtime.add_metric([], buckets(DOWNTIMES, totals.downtimes), totals.downtime_sum)
    yield downtime
    stages = HistogramMetricFamily("tandem_migration_stages", "Copies that a move took, the last included.")
    stages.add_metric([], buckets(STAGES, totals.stages), totals.stages_sum)
    yield stages


def buckets(bounds: Sequence[float], counts: Sequence[int]) -> list[tuple[str, float]]:
    """Cumulative buckets; all 0 before the controller has told any."""
    found = list(accumulate(counts)) or [0] * (len(bounds) + 1)
    return list(zip([*(str(float(bound)) for bound in bounds), "+Inf"], map(float, found), strict=True))
