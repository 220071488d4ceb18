"""Metrics of what the controller and the movements between instances tell: decisions, sizes, transfers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from cluster import control_pb2 as pb
from cluster.figures import SECONDS as DECISIONS
from cluster.metrics_status import buckets
from cluster.objectives import Objectives
from migration.transfers import KINDS
from migration.transfers import SECONDS as TRANSFERS


class ControlCollector(Collector):
    """Of the status at each scrape; `most` instances have series of their own."""

    def __init__(self, status: Callable[[], pb.ClusterStatus], most: int, objectives: Objectives) -> None:
        self._status = status
        self._most = most
        self._objectives = objectives

    def describe(self) -> Iterable[Metric]:
        """Nothing: the names depend on no status, but asking would need one."""
        return ()

    def collect(self) -> Iterator[Metric]:
        status = self._status()
        yield from self._attainment()
        yield from _sizes(status)
        yield from _placing(status, self._most)
        instances = list(status.instances)[: self._most]
        yield from _transfers(instances)
        yield from _slices(instances)

    def _attainment(self) -> Iterator[Metric]:
        """Of this gateway's requests; without any there is nothing to be a share of."""
        share = GaugeMetricFamily(
            "tandem_slo_attainment_ratio",
            "Share of the requests that ended lately which met an objective.",
            labels=["slo"],
        )
        both = GaugeMetricFamily(
            "tandem_goodput_ratio", "Share of the requests that ended lately which met both objectives."
        )
        lately = self._objectives.lately()
        if lately.requests:
            share.add_metric(["ttft"], lately.ttft_attainment)
            share.add_metric(["tpot"], lately.tpot_attainment)
            both.add_metric([], lately.attainment)
        yield from (share, both)


def _sizes(status: pb.ClusterStatus) -> Iterator[Metric]:
    wish = GaugeMetricFamily(
        "tandem_planner_target_replicas", "Instances that autoscaling wants, or would.", labels=["pool"]
    )
    for pool in status.pools:
        wish.add_metric([pool.name], pool.wish if pool.opinion else pool.target)
    resized = CounterMetricFamily(
        "tandem_scale_events", "Changes of a pool's target.", labels=["pool", "direction", "reason"]
    )
    for one in status.figures.resized:
        resized.add_metric([one.pool, one.direction, one.reason], one.count)
    yield from (wish, resized)


def _placing(status: pb.ClusterStatus, most: int) -> Iterator[Metric]:
    decisions = HistogramMetricFamily("tandem_sched_decision_seconds", "Time that a placement took.")
    decisions.add_metric([], buckets(DECISIONS, status.figures.decisions), status.figures.decision_seconds)
    free = GaugeMetricFamily(
        "tandem_freeness", "KV blocks left per request, as placing sees it.", labels=["instance"]
    )
    usage = GaugeMetricFamily(
        "tandem_virtual_usage",
        "KV blocks that are used, reserved or asked for, as placing sees it.",
        labels=["instance"],
    )
    for each in list(status.instances)[:most]:
        free.add_metric([each.name], each.freeness)
        usage.add_metric([each.name], each.virtual_usage)
    yield from (decisions, free, usage)


def _slices(instances: list[pb.Instance]) -> Iterator[Metric]:
    """Of instances that serve batches in slices: how good the estimator is."""
    served = CounterMetricFamily("tandem_slice_served", "Slices served whole.", labels=["instance"])
    seconds = CounterMetricFamily("tandem_slice_seconds", "Time that they took.", labels=["instance"])
    predicted = CounterMetricFamily(
        "tandem_slice_predicted_seconds", "Time that was predicted for them.", labels=["instance"]
    )
    for each in instances:
        if each.HasField("slices"):
            served.add_metric([each.name], each.slices.served)
            seconds.add_metric([each.name], each.slices.seconds)
            predicted.add_metric([each.name], each.slices.predicted)
    yield from (served, seconds, predicted)


def _transfers(instances: list[pb.Instance]) -> Iterator[Metric]:
    """Bytes and time of the same movements, so that their quotient is a rate that a link can have."""
    pair = ["backend", "src", "dst"]
    nbytes = CounterMetricFamily(
        "tandem_kv_transfer_bytes", "KV that was sent in movements that were committed.", labels=pair
    )
    seconds = HistogramMetricFamily(
        "tandem_kv_transfer_seconds", "Time of a movement that was committed.", labels=["backend"]
    )
    failures = CounterMetricFamily(
        "tandem_kv_transfer_failures",
        "Movements that failed; the request went on at its source.",
        labels=["instance", "reason"],
    )
    expired = CounterMetricFamily(
        "tandem_lease_expirations",
        "Movements that came in and of which nothing was heard for a whole lease.",
        labels=["instance"],
    )
    times: dict[str, list[int]] = {}
    sums: dict[str, float] = {}
    for each in instances:
        failed = Counter(dict.fromkeys(KINDS, 0))
        for one in each.transfers:
            nbytes.add_metric([one.transport, each.name, one.destination], one.bytes)
            known = times.setdefault(one.transport, [0] * len(one.buckets))
            times[one.transport] = [a + b for a, b in zip(known, one.buckets, strict=True)]
            sums[one.transport] = sums.get(one.transport, 0.0) + one.seconds
            failed.update({failure.reason: failure.count for failure in one.failures})
        for reason, count in failed.items():
            failures.add_metric([each.name, reason], count)
        expired.add_metric([each.name], each.lease_expirations)
    for transport, counts in times.items():
        seconds.add_metric([transport], buckets(TRANSFERS, counts), sums[transport])
    yield from (nbytes, seconds, failures, expired)
