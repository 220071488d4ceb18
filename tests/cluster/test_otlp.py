"""Traces and metrics leave with OpenTelemetry's own exporter, and a collector that speaks OTLP takes them."""

from __future__ import annotations

import asyncio
import gzip
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import httpx
import pytest
from google.protobuf.message import Message

from cluster import genai_metrics, tracing
from cluster import trace_names as names
from cluster.config import GatewayConfig
from cluster.gateway_api import build_api
from cluster.genai_metrics import GenAiMetrics, measuring
from cluster.tracing import Traces, exporting
from tests.cluster.asking import TEXT
from tests.cluster.local_cluster import local_cluster

pytest.importorskip(
    "opentelemetry.exporter.otlp.proto.http", reason="needs the extra `tracing`: OpenTelemetry's exporter"
)
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

PARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
BODY = {"model": "tiny", "prompt": "0123456789" * 3, "max_tokens": 20}
KINDS: dict[str, type[Message]] = {
    "/v1/traces": ExportTraceServiceRequest,
    "/v1/metrics": ExportMetricsServiceRequest,
}


class Collector:
    """Listens as OpenTelemetry's collector does; keeps what it was sent, by path."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.bodies: list[tuple[str, Message]] = []
        self.raw = b""

    def received(self, path: str) -> list[Message]:
        return [message for at, message in self.bodies if at == path]


@contextmanager
def collecting() -> Iterator[Collector]:
    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            data = self.rfile.read(int(self.headers["content-length"]))
            if self.headers.get("content-encoding") == "gzip":
                data = gzip.decompress(data)
            assert self.headers["content-type"] == "application/x-protobuf"
            found.raw += data
            found.bodies.append((self.path, KINDS[self.path].FromString(data)))
            self.send_response(200)
            self.send_header("content-length", "0")
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:
            """Quiet."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    found = Collector(f"http://127.0.0.1:{server.server_port}")
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield found
    finally:
        server.shutdown()
        thread.join(10)
        server.server_close()


@pytest.fixture
def collector(monkeypatch: pytest.MonkeyPatch) -> Iterator[Collector]:
    for one in {*tracing.ENDPOINTS, *genai_metrics.ENDPOINTS, genai_metrics.EXPORTER}:
        monkeypatch.delenv(one, raising=False)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with collecting() as found:
        yield found


def ask(traces: Traces | None, measures: GenAiMetrics | None) -> httpx.Response:
    """One request through a gateway, and all that is to be sent of it."""

    async def run() -> httpx.Response:
        async with local_cluster(config=GatewayConfig(api_keys=())) as cluster:
            transport = httpx.ASGITransport(build_api(cluster.service, traces, measures))
            async with httpx.AsyncClient(transport=transport, base_url="http://tandem") as client:
                return await client.post(TEXT, json=BODY, headers={"traceparent": PARENT})

    answer = asyncio.run(run())
    for one in (traces, measures):
        if one is not None:
            one.close()
    return answer


def test_a_trace_arrives_whole(collector: Collector) -> None:
    answer = ask(exporting("tiny", f"{collector.url}/v1/traces", 1.0), None)
    (sent,) = collector.received("/v1/traces")
    assert isinstance(sent, ExportTraceServiceRequest)
    resource = {one.key: one.value.string_value for one in sent.resource_spans[0].resource.attributes}
    assert resource["service.name"] == "tandem"
    spans = list(sent.resource_spans[0].scope_spans[0].spans)
    assert {one.trace_id.hex() for one in spans} == {PARENT[3:35]}
    (root,) = [one for one in spans if one.parent_span_id.hex() == PARENT[36:52]]
    assert root.name == "text_completion tiny"
    assert root.span_id.hex() == answer.headers["traceparent"][36:52]
    children = [one for one in spans if one.parent_span_id == root.span_id]
    assert {"admit", "schedule", "queue", "prefill", "decode", "respond"} == {one.name for one in children}
    told = sum(one.end_time_unix_nano - one.start_time_unix_nano for one in children)
    whole = root.end_time_unix_nano - root.start_time_unix_nano
    assert abs(told - whole) <= 0.01 * whole


def test_metrics_arrive_with_the_gateway_that_they_are_of(collector: Collector) -> None:
    ask(None, measuring("tiny", f"{collector.url}/v1/metrics"))
    (sent,) = collector.received("/v1/metrics")
    assert isinstance(sent, ExportMetricsServiceRequest)
    (one,) = sent.resource_metrics
    resource = {each.key: each.value.string_value for each in one.resource.attributes}
    assert resource["service.name"] == "tandem"
    assert len(resource["service.instance.id"]) == 36, "or one gateway's totals would hide another's"
    found = {metric.name: metric for metric in one.scope_metrics[0].metrics}
    assert set(found) == {
        names.REQUEST_DURATION,
        names.SERVER_TIME_TO_FIRST_TOKEN,
        names.SERVER_TIME_PER_OUTPUT_TOKEN,
    }
    assert {metric.unit for metric in found.values()} == {"s"}
    assert [point.count for point in found[names.REQUEST_DURATION].histogram.data_points] == [1]


def test_one_variable_of_opentelemetrys_sends_both(
    collector: Collector, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", collector.url)
    monkeypatch.setenv("OTEL_SERVICE_NAME", "ours")
    ask(exporting("tiny", None, 1.0), measuring("tiny", None))
    assert {path for path, _ in collector.bodies} == set(KINDS)
    assert collector.raw.count(b"ours") == 2
    assert b"tandem" in collector.raw, "the scope"


def test_prompts_are_in_nothing_that_is_sent(collector: Collector) -> None:
    answer = ask(
        exporting("tiny", f"{collector.url}/v1/traces", 1.0),
        measuring("tiny", f"{collector.url}/v1/metrics"),
    )
    assert len(collector.bodies) == 2
    assert b"0123456789" not in collector.raw
    assert answer.json()["choices"][0]["text"].encode() not in collector.raw


def test_a_collector_that_is_away_costs_an_answer_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "1")
    answer = ask(
        exporting("tiny", "http://127.0.0.1:9/v1/traces", 1.0),
        measuring("tiny", "http://127.0.0.1:9/v1/metrics"),
    )
    assert answer.status_code == 200
