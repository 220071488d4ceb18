"""OpenTelemetry's metrics of a server of generative models: names, units, buckets, what counts as what."""

from __future__ import annotations

import asyncio
from typing import Any

import httpx
import pytest
from opentelemetry.sdk.metrics.export import HistogramDataPoint, InMemoryMetricReader, Metric
from opentelemetry.semconv._incubating.metrics import gen_ai_metrics as conventions

from cluster import genai_metrics as measured
from cluster import trace_names as names
from cluster.config import GatewayConfig
from cluster.gateway_api import build_api
from cluster.genai_metrics import GenAiMetrics
from engine.errors import SetupError
from tests.cluster.asking import CHAT, HELLO, TEXT
from tests.cluster.doubles import ScriptedRunner
from tests.cluster.local_cluster import local_cluster

BODY = {"model": "tiny", "prompt": "hi", "max_tokens": 20}
ALL = (names.REQUEST_DURATION, names.SERVER_TIME_TO_FIRST_TOKEN, names.SERVER_TIME_PER_OUTPUT_TOKEN)


class Collected:
    """What a collector is sent."""

    def __init__(self) -> None:
        self.reader = InMemoryMetricReader()
        self.metrics = GenAiMetrics("tiny", self.reader)
        self._last: dict[str, Metric] = {}

    def read(self) -> dict[str, Metric]:
        data = self.reader.get_metrics_data()
        if data is not None:
            scopes = [scope for one in data.resource_metrics for scope in one.scope_metrics]
            self._last = {one.name: one for scope in scopes for one in scope.metrics}
        return self._last

    def points(self, name: str) -> list[HistogramDataPoint]:
        found = self.read().get(name)
        points: Any = [] if found is None else found.data.data_points
        return list(points)

    def counts(self, name: str) -> dict[str, int]:
        """How many were counted, by what kept them from their answer."""
        found: dict[str, int] = {}
        for point in self.points(name):
            error = str((point.attributes or {}).get(names.ERROR, ""))
            found[error] = found.get(error, 0) + point.count
        return found


async def asked(
    collected: Collected, *requests: tuple[str, dict[str, Any]], headers: dict[str, str] | None = None
) -> list[httpx.Response]:
    """Requests to a gateway, one after the other."""
    async with local_cluster(config=GatewayConfig(api_keys=())) as cluster:
        app = build_api(cluster.service, None, collected.metrics)
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://tandem") as client:
            return [await client.post(path, json=body, headers=headers) for path, body in requests]


def test_names_units_and_buckets_are_those_of_the_conventions() -> None:
    assert set(ALL) == {
        conventions.GEN_AI_SERVER_REQUEST_DURATION,
        conventions.GEN_AI_SERVER_TIME_TO_FIRST_TOKEN,
        conventions.GEN_AI_SERVER_TIME_PER_OUTPUT_TOKEN,
    }
    collected = Collected()
    asyncio.run(asked(collected, (TEXT, BODY)))
    assert set(collected.read()) == set(ALL)
    assert {one.unit for one in collected.read().values()} == {"s"}
    assert all(one.description for one in collected.read().values())
    bounds = [collected.points(name)[0].explicit_bounds for name in ALL]
    assert bounds == [measured.DURATIONS, measured.FIRST_TOKENS, measured.OUTPUT_TOKENS]


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("path", "body", "operation"),
    [(TEXT, BODY, "text_completion"), (CHAT, {"model": "tiny", "messages": HELLO, "max_tokens": 20}, "chat")],
)
def test_an_answer_counts_once_in_each(path: str, body: dict[str, Any], operation: str, stream: bool) -> None:
    collected = Collected()
    asyncio.run(asked(collected, (path, body | {"stream": stream})))
    for name in ALL:
        (point,) = collected.points(name)
        assert point.count == 1
        assert dict(point.attributes or {}) == {
            names.OPERATION: operation,
            names.PROVIDER_NAME: "tandem",
            names.REQUEST_MODEL: "tiny",
            names.RESPONSE_MODEL: "tiny",
        }
    duration, first, rest = (collected.points(name)[0].sum for name in ALL)
    assert 0 < first < duration
    assert first + 19 * rest <= duration


def test_what_was_refused_has_a_duration_and_the_reason_and_nothing_else() -> None:
    collected = Collected()
    wrong = BODY | {"max_tokens": 10_000}
    asyncio.run(asked(collected, (TEXT, wrong), (TEXT, BODY | {"model": "another"}), (TEXT, BODY)))
    assert collected.counts(names.REQUEST_DURATION) == {"400": 1, "404": 1, "": 1}
    assert collected.counts(names.SERVER_TIME_TO_FIRST_TOKEN) == {"": 1}
    assert collected.counts(names.SERVER_TIME_PER_OUTPUT_TOKEN) == {"": 1}


def test_a_stream_that_broke_off_is_no_success() -> None:
    """Its status had been sent already."""
    collected = Collected()

    class Brief(ScriptedRunner):
        def _draw(self, draw: Any) -> Any:
            if draw is not None and draw.position == 5:
                raise ValueError("cannot be computed")
            return super()._draw(draw)

    async def ask() -> None:
        async with local_cluster(config=GatewayConfig(api_keys=()), make_runner=Brief) as cluster:
            transport = httpx.ASGITransport(build_api(cluster.service, None, collected.metrics))
            async with httpx.AsyncClient(transport=transport, base_url="http://tandem") as client:
                answer = await client.post(TEXT, json=BODY | {"stream": True})
                assert answer.status_code == 200
                assert '"error"' in answer.text

    asyncio.run(ask())
    (reason,) = collected.counts(names.REQUEST_DURATION)
    assert reason in ("server_error", "overloaded", "instance_died")
    assert collected.counts(names.SERVER_TIME_TO_FIRST_TOKEN) == {}


def test_requests_that_are_not_traced_are_measured_and_others_of_the_gateway_are_not() -> None:
    collected = Collected()
    no = {"traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-00"}
    tokens = ("/tokenize", {"model": "tiny", "prompt": "hi"})
    asyncio.run(asked(collected, (TEXT, BODY), tokens, headers=no))
    assert collected.counts(names.REQUEST_DURATION) == {"": 1}


def test_no_label_grows_with_clients() -> None:
    """Neither tenants nor ids: series are bounded by operations and kinds of errors."""
    collected = Collected()
    bodies = [(TEXT, BODY | {"user": f"tenant-{number}"}) for number in range(5)]
    asyncio.run(asked(collected, *bodies))
    assert [len(collected.points(name)) for name in ALL] == [1, 1, 1]


@pytest.fixture
def nowhere(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    for one in (*measured.ENDPOINTS, measured.EXPORTER):
        monkeypatch.delenv(one, raising=False)
    return monkeypatch


def test_without_a_collector_nothing_is_measured(nowhere: pytest.MonkeyPatch) -> None:
    assert measured.measuring("tiny", None) is None
    nowhere.setenv(measured.ENDPOINTS[1], "http://127.0.0.1:9")
    nowhere.setenv(measured.EXPORTER, "none")
    assert measured.measuring("tiny", None) is None


def test_a_collector_that_is_asked_for_needs_opentelemetry(
    nowhere: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    nowhere.setitem(__import__("sys").modules, "opentelemetry.exporter.otlp.proto.http.metric_exporter", None)
    with pytest.raises(SetupError, match="tandem-serving"):
        measured.measuring("tiny", "http://127.0.0.1:9/v1/metrics")
    nowhere.setenv(measured.ENDPOINTS[0], "http://127.0.0.1:9/v1/metrics")
    assert measured.measuring("tiny", None) is None
    assert "no metrics are sent" in caplog.text
