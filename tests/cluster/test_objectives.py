"""Objectives over a window, the controller's own figures, and what a scrape makes of them."""

from __future__ import annotations

import pytest
from prometheus_client import CollectorRegistry, Counter
from prometheus_client.parser import text_string_to_metric_families
from ray.util.metrics import Gauge

from cluster import control_pb2 as pb
from cluster.admin_history import History
from cluster.config import ObserveConfig
from cluster.figures import Figures
from cluster.metrics import Metrics
from cluster.objectives import Objectives
from cluster.ray_metrics import RayMetrics


def test_shares_are_of_the_window_only() -> None:
    now = 0.0
    objectives = Objectives(ObserveConfig(slo_ttft=1.0, slo_tpot=0.1, window=60.0), lambda: now)
    assert objectives.lately().requests == 0
    objectives.add(0.5, 0.05, -5.0)
    objectives.add(0.5, 0.2, -15.0)
    objectives.add(2.0, None, -15.0)
    objectives.add(None, None, -500.0)
    lately = objectives.lately()
    assert lately.requests == 4
    assert (lately.attainment, lately.ttft_attainment, lately.tpot_attainment) == (0.25, 0.5, 0.75)
    assert lately.ttft == pytest.approx(1.0)
    assert lately.tpot == pytest.approx(0.125)
    ages = [1, 2, *[0] * 9, 1]
    assert [*lately.began] == ages, "the last that began long ago"
    assert [*lately.ttft_met] == [1, 1, *[0] * 10]
    assert [*lately.tpot_met] == [1, 1, *[0] * 9, 1]
    now = 59.0
    objectives.add(0.1, 0.01, 58.0)
    now = 61.0
    assert (objectives.lately().requests, objectives.lately().attainment) == (1, 1.0)


def samples(status: pb.ClusterStatus) -> dict[tuple[str, ...], float]:
    """By name and label values, in the order of the labels' names."""
    text = Metrics("m", lambda: status).text().decode()
    return {
        (one.name, *one.labels.values()): one.value
        for family in text_string_to_metric_families(text)
        for one in family.samples
    }


def test_the_controllers_figures_come_out_as_metrics() -> None:
    figures = Figures()
    figures.decided(0.00002)
    figures.decided(1.0)
    figures.resized("decode", 2, 3, "by request")
    figures.resized("decode", 3, 2, "the load fits in 2")
    found = samples(pb.ClusterStatus(figures=figures.message()))
    assert found["tandem_sched_decision_seconds_count",] == 2
    assert found["tandem_sched_decision_seconds_bucket", "2.5e-05"] == 1
    assert found["tandem_scale_events_total", "up", "decode", "request"] == 1
    assert found["tandem_scale_events_total", "down", "decode", "autoscale"] == 1


def test_transfers_come_out_by_pair_and_reason() -> None:
    sent = pb.Transfers(transport="shm", destination="decode-0", bytes=10, seconds=0.5, buckets=[1] * 15)
    sent.failures.add(reason="lost", count=2)
    instance = pb.Instance(name="prefill-0", transfers=[sent], freeness=3.5, virtual_usage=40)
    found = samples(pb.ClusterStatus(instances=[instance]))
    assert found["tandem_kv_transfer_bytes_total", "shm", "decode-0", "prefill-0"] == 10
    assert found["tandem_kv_transfer_seconds_count", "shm"] == 15
    assert found["tandem_kv_transfer_seconds_sum", "shm"] == 0.5
    assert found["tandem_kv_transfer_failures_total", "prefill-0", "lost"] == 2
    assert found["tandem_kv_transfer_failures_total", "prefill-0", "other"] == 0
    assert found["tandem_freeness", "prefill-0"] == 3.5
    assert found["tandem_virtual_usage", "prefill-0"] == 40


def test_instances_beyond_the_cap_have_no_series() -> None:
    status = pb.ClusterStatus(instances=[pb.Instance(name=f"decode-{number}") for number in range(5)])
    text = Metrics("m", lambda: status, ObserveConfig(instances=2)).text().decode()
    assert 'tandem_freeness{instance="decode-1"}' in text
    assert "decode-2" not in text


def test_rays_metrics_are_those_of_the_registry() -> None:
    registry = CollectorRegistry()
    counter = Counter("vllm:things", "Things.", ("kind",), registry=registry)
    made: dict[str, dict[tuple[str, ...], float]] = {}

    class Kept:
        def __init__(self, name: str, text: str, keys: tuple[str, ...]) -> None:
            self.values = made.setdefault(name, {})

        def set(self, value: float, tags: dict[str, str]) -> None:
            self.values[tuple(tags.values())] = value

    mirror = RayMetrics(registry, Kept)  # type: ignore[arg-type]
    counter.labels("a").inc(2)
    mirror.copy()
    counter.labels("a").inc()
    counter.labels("b").inc()
    mirror.copy()
    assert made["vllm_things_total"] == {("a",): 3.0, ("b",): 1.0}


def test_ray_takes_a_tenant_of_any_letters() -> None:
    """Its own gauge: it takes ASCII alone."""
    registry = CollectorRegistry()
    Counter("tandem_things", "Things.", ("tenant",), registry=registry).labels("Müller 你好").inc()
    with pytest.raises(UnicodeEncodeError):
        Gauge("tandem_others", "Others.", ("tenant",)).set(1.0, tags={"tenant": "Müller"})
    RayMetrics(registry).copy()


def test_samples_are_rates_between_two_looks() -> None:
    now = 100.0
    history = History(2, lambda: now)

    def look(at: float, *tokens: int) -> pb.ClusterStatus:
        nonlocal now
        now = at
        return pb.ClusterStatus(
            instances=[
                pb.Instance(
                    name=f"decode-{number}",
                    status=pb.InstanceStatus(output_tokens=count, blocks_total=10, blocks_used=5, running=1),
                )
                for number, count in enumerate(tokens)
            ]
        )

    assert history.add(look(100.0, 50)).output_rate == 0.0
    sample = history.add(look(102.0, 90, 1000))
    assert (sample.output_rate, sample.kv_usage, sample.running) == (20.0, 0.5, 2)
    assert sample.ttft is None
    assert history.add(look(104.0, 10, 1010)).output_rate == 5.0, "one was started again and counts from 0"
    assert len(history.listed()) == 2
