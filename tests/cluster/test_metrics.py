"""/metrics: the names that dashboards read, and numbers that agree with what happened."""

from __future__ import annotations

import asyncio
import re

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.samples import Sample

from cluster import control_pb2 as pb
from cluster.config import EngineConfig, ObserveConfig
from cluster.config_engine import StepCostConfig
from cluster.metrics_control import ControlCollector
from cluster.metrics_status import StatusCollector
from cluster.objectives import Objectives
from cluster.policies import role_policy
from cluster.role_policy import slices_message
from decode_pool.slice_batches import SliceBatches, Slices
from engine.errors import Overloaded
from global_scheduler.placement import DECODE
from tests.cluster.doubles import ScriptedRunner, until
from tests.cluster.local_cluster import LocalCluster, local_cluster

TEXT = "/v1/completions"
HISTOGRAMS = [
    "vllm:time_to_first_token_seconds",
    "vllm:inter_token_latency_seconds",
    "vllm:time_per_output_token_seconds",
    "vllm:request_time_per_output_token_seconds",
    "vllm:e2e_request_latency_seconds",
    "vllm:request_queue_time_seconds",
    "vllm:request_prefill_time_seconds",
    "vllm:request_decode_time_seconds",
    "vllm:request_prompt_tokens",
    "vllm:request_generation_tokens",
    "vllm:iteration_tokens_total",
]
OTHERS = [
    "vllm:num_requests_running",
    "vllm:num_requests_waiting",
    "vllm:num_requests_waiting_by_reason",
    "vllm:kv_cache_usage_perc",
    "vllm:lora_requests_info",
    "vllm:cache_config_info",
    "vllm:prefix_cache_queries_total",
    "vllm:prefix_cache_hits_total",
    "vllm:prompt_tokens_total",
    "vllm:prompt_tokens_by_source_total",
    "vllm:generation_tokens_total",
    "vllm:num_preemptions_total",
    "vllm:request_success_total",
    "vllm:spec_decode_num_drafts_total",
    "vllm:spec_decode_num_draft_tokens_total",
    "vllm:spec_decode_num_accepted_tokens_total",
]
OURS = [
    "tandem_requests_total",
    "tandem_ttft_seconds_bucket",
    "tandem_itl_seconds_bucket",
    "tandem_tpot_seconds_bucket",
    "tandem_e2e_seconds_bucket",
    "tandem_queue_seconds_bucket",
    "tandem_disagg_decisions_total",
    "tandem_pool_replicas",
    "tandem_pool_target_replicas",
    "tandem_instance_role_info",
    "tandem_kv_blocks",
    "tandem_prefix_hit_ratio",
    "tandem_slo_attainment_ratio",
    "tandem_goodput_ratio",
    "tandem_planner_target_replicas",
    "tandem_sched_decision_seconds_bucket",
    "tandem_virtual_usage",
    "tandem_freeness",
    "tandem_kv_transfer_failures_total",
    "tandem_lease_expirations_total",
    "tandem_fairness_service_tokens",
    "tandem_rejections_total",
    "tandem_resumes_total",
    "tandem_migrations_total",
    "tandem_migration_downtime_seconds_bucket",
    "tandem_migration_stages_bucket",
]


async def scrape(cluster: LocalCluster, client: httpx.AsyncClient) -> list[Sample]:
    """What a scrape shows once the gateway's picture of the instances is new."""
    cluster.service.facts._tried = float("-inf")
    text = (await client.get("/metrics")).text
    return [sample for family in text_string_to_metric_families(text) for sample in family.samples]


def value(samples: list[Sample], name: str, **labels: str) -> float:
    found = [each for each in samples if each.name == name and labels.items() <= each.labels.items()]
    assert len(found) == 1, found
    return float(found[0].value)


def after_requests(*bodies: dict[str, object]) -> list[Sample]:
    async def run() -> list[Sample]:
        async with local_cluster() as cluster, cluster.client() as client:
            await scrape(cluster, client)
            for body in bodies:
                await client.post(TEXT, json={"model": "tiny", "prompt": "0123456789", **body})
            return await scrape(cluster, client)

    return asyncio.run(run())


def test_every_name_that_dashboards_read_is_there() -> None:
    names = {sample.name for sample in after_requests({"max_tokens": 5})}
    wanted = {*(f"{name}_bucket" for name in HISTOGRAMS), *OTHERS, *OURS}
    assert wanted - names == set()


def test_buckets_of_latencies_are_vllms() -> None:
    samples = after_requests({"max_tokens": 5})
    edges = [s.labels["le"] for s in samples if s.name == "vllm:time_to_first_token_seconds_bucket"]
    assert edges[:6] == ["0.001", "0.005", "0.01", "0.02", "0.04", "0.06"]
    assert edges[-2:] == ["2560.0", "+Inf"]
    edges = [s.labels["le"] for s in samples if s.name == "vllm:e2e_request_latency_seconds_bucket"]
    assert (edges[0], edges[-2]) == ("0.3", "7680.0")


def test_tokens_are_counted_once() -> None:
    samples = after_requests({"max_tokens": 5}, {"max_tokens": 7, "n": 2})
    assert value(samples, "vllm:prompt_tokens_total") == 20
    assert value(samples, "vllm:generation_tokens_total") == 5 + 14
    assert value(samples, "vllm:prompt_tokens_by_source_total", source="local_cache_hit") == 8
    assert value(samples, "vllm:request_success_total", finished_reason="length") == 3
    assert value(samples, "vllm:e2e_request_latency_seconds_count") == 2
    assert value(samples, "vllm:inter_token_latency_seconds_count") == 4 + 12
    assert value(samples, "vllm:iteration_tokens_total_sum") > 0


class Steps:
    """A gateway's collector, shown statuses of instances: name → (steps, tokens)."""

    def __init__(self) -> None:
        self._status = pb.ClusterStatus()
        self._collector = StatusCollector("tiny", lambda: self._status, 100)

    def shown(self, **instances: tuple[int, int]) -> tuple[float, float]:
        """Steps and tokens that are counted after this status."""
        self._status = pb.ClusterStatus()
        for name, (steps, tokens) in instances.items():
            one = self._status.instances.add(name=name)
            one.status.steps, one.status.prompt_tokens, one.status.output_tokens = steps, tokens, 0
        families = {family.name: family for family in self._collector.collect()}
        samples = families["vllm:iteration_tokens_total"].samples
        name = "vllm:iteration_tokens_total"
        return value(samples, f"{name}_count"), value(samples, f"{name}_sum")


def test_steps_before_an_instance_was_first_seen_are_the_past() -> None:
    steps = Steps()
    assert steps.shown(a=(1000, 50_000)) == (0, 0)
    assert steps.shown(a=(1002, 50_010)) == (2, 10)
    assert steps.shown(a=(1002, 50_010), b=(7, 70)) == (2, 10)
    assert steps.shown(a=(1003, 50_012), b=(8, 80)) == (4, 22)


def test_an_instance_that_is_out_of_sight_for_a_while_is_not_counted_again() -> None:
    steps = Steps()
    steps.shown(a=(1000, 50_000))
    assert steps.shown() == (0, 0)
    assert steps.shown(a=(2000, 100_000)) == (1000, 50_000)
    assert steps.shown(a=(1, 10)) == (1000, 50_000), "one that begins anew"
    assert steps.shown(a=(2, 20)) == (1001, 50_010)


def test_instances_that_are_gone_are_forgotten_in_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cluster.metrics_status.REMEMBERED", 3)
    steps = Steps()
    for number in range(10):
        steps.shown(stays=(number, number), **{f"passes{number}": (1, 1)})
    assert [*steps._collector._steps] == ["passes6", "passes7", "passes8", "stays", "passes9"]


def test_requests_are_counted_by_how_they_ended() -> None:
    samples = after_requests({"max_tokens": 1}, {"max_tokens": 1, "user": "ann"}, {"max_tokens": 1000})
    assert value(samples, "tandem_requests_total", code="200", tenant="default") == 1
    assert value(samples, "tandem_requests_total", code="200", tenant="ann") == 1
    assert value(samples, "tandem_requests_total", code="400") == 1


def test_refusals_for_want_of_room_are_counted_by_reason() -> None:
    async def run() -> None:
        async with local_cluster() as cluster, cluster.client() as client:
            cluster.instances["instance-0"].refusal = Overloaded("full")
            await client.post(TEXT, json={"model": "tiny", "prompt": "hi"})
            samples = await scrape(cluster, client)
            assert value(samples, "tandem_rejections_total", reason="overloaded") == 1
            assert value(samples, "vllm:admission_rejections_total") == 1

    asyncio.run(run())


def test_clients_that_leave_are_counted_as_such() -> None:
    runner = ScriptedRunner()
    runner.gate.clear()

    async def run() -> None:
        async with local_cluster(make_runner=lambda: runner) as cluster, cluster.client() as client:
            async with cluster.serve() as url, httpx.AsyncClient(base_url=url, trust_env=False) as real:
                asking = asyncio.create_task(real.post(TEXT, json={"model": "tiny", "prompt": "hi"}))
                await until(lambda: cluster.instances["instance-0"].started)
                asking.cancel()
                await asyncio.gather(asking, return_exceptions=True)
                await until(lambda: cluster.instances["instance-0"].cancelled)
            runner.gate.set()
            assert value(await scrape(cluster, client), "tandem_requests_total", code="499") == 1

    asyncio.run(run())


def test_blocks_add_up() -> None:
    samples = after_requests({"max_tokens": 5})
    states = [s.value for s in samples if s.name == "tandem_kv_blocks"]
    assert (len(states), sum(states)) == (4, 64)


def test_slices_are_counted_where_batches_are_served_in_them() -> None:
    engine = EngineConfig(batch="slices", step_cost=StepCostConfig(per_token=0.1))
    policy = role_policy(engine, DECODE)
    (slices,) = (one for one in policy.policies.values() if isinstance(one, SliceBatches))
    slices.served = Slices(3, 1.5, 1.25)
    status = pb.ClusterStatus(
        instances=[
            pb.Instance(name="decode-0", slices=slices_message(policy)),
            pb.Instance(name="decode-1", slices=slices_message(role_policy(EngineConfig(), DECODE))),
        ]
    )
    collector = ControlCollector(lambda: status, 8, Objectives(ObserveConfig()))
    found = [sample for family in collector.collect() for sample in family.samples if "slice" in sample.name]
    assert [(sample.name, sample.labels, sample.value) for sample in found] == [
        ("tandem_slice_served_total", {"instance": "decode-0"}, 3),
        ("tandem_slice_seconds_total", {"instance": "decode-0"}, 1.5),
        ("tandem_slice_predicted_seconds_total", {"instance": "decode-0"}, 1.25),
    ]


def test_tenants_beyond_the_cap_share_a_label() -> None:
    most = ObserveConfig().tenants
    bodies: list[dict[str, object]] = [{"max_tokens": 1, "user": f"u{i}"} for i in range(most + 3)]
    samples = after_requests(*bodies)
    assert value(samples, "tandem_requests_total", tenant="other") == 3


@pytest.mark.parametrize("family", ["tandem_"])
def test_our_names_keep_the_conventions_of_prometheus(family: str) -> None:
    """What promtool checks: help on all, `total` on counters only, base units, no type in a name."""

    async def run() -> str:
        async with local_cluster() as cluster, cluster.client() as client:
            await client.post(TEXT, json={"model": "tiny", "prompt": "hi", "max_tokens": 3})
            return (await client.get("/metrics")).text

    for metric in text_string_to_metric_families(asyncio.run(run())):
        if not metric.name.startswith(family):
            continue
        assert metric.documentation, metric.name
        assert not re.search(r"(_ms|_milliseconds|_minutes|counter|gauge|histogram)(_|$)", metric.name)
        assert metric.name.endswith("_total") is False
        assert all((metric.type == "counter") == sample.name.endswith("_total") for sample in metric.samples)
