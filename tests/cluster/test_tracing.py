"""One trace per request, on the real path: HTTP, real instances, a handoff and a migration between them."""

from __future__ import annotations

import asyncio
import json
import logging
import sys
import time
import types
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

import httpx
import pytest
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from cluster import trace_names as names
from cluster.arrival import arrived
from cluster.cluster_facts import ClusterFacts
from cluster.config import GatewayConfig
from cluster.gateway_api import build_api
from cluster.gateway_service import GatewayService
from cluster.logs import JsonFormatter
from cluster.metrics import Metrics
from cluster.openai_answers import ModelCard
from cluster.tracing import ENDPOINTS, Traces, exporting
from engine.errors import SetupError
from model.tokenizer import Detokenizer, Tokenizer
from tests.cluster.doubles import until
from tests.cluster.local_cluster import local_cluster
from tests.cluster.pools import Pools, pools

STATE = "rojo=00f067aa0ba902b7,congo=t61rcWkgMzE"
PARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
BODY = {"model": "tiny", "prompt": "0123456789" * 3, "max_tokens": 20}


class Spans:
    """What a collector would be sent."""

    def __init__(self, share: float = 1.0) -> None:
        self.exporter = InMemorySpanExporter()
        self.traces = Traces("tiny", SimpleSpanProcessor(self.exporter), share)

    @property
    def all(self) -> tuple[ReadableSpan, ...]:
        return self.exporter.get_finished_spans()

    @property
    def root(self) -> ReadableSpan:
        known = {span.context.span_id for span in self.all if span.context is not None}
        (root,) = [span for span in self.all if span.parent is None or span.parent.span_id not in known]
        return root

    def children(self, of: ReadableSpan) -> list[ReadableSpan]:
        assert of.context is not None
        found = [span for span in self.all if span.parent and span.parent.span_id == of.context.span_id]
        return sorted(found, key=lambda span: span.start_time or 0)


def seconds(span: ReadableSpan) -> float:
    assert span.start_time is not None
    assert span.end_time is not None
    return (span.end_time - span.start_time) / 1e9


def attributes(span: ReadableSpan) -> dict[str, object]:
    return dict(span.attributes or {})


async def traced(spans: Spans, body: dict[str, object], **headers: str) -> httpx.Response:
    """One request through a gateway whose instances draw from a script."""
    async with local_cluster(config=GatewayConfig(api_keys=())) as cluster:
        app = build_api(cluster.service, spans.traces)
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://tandem") as client:
            return await client.post("/v1/completions", json=body, headers=headers)


def test_a_trace_goes_on_from_the_clients_and_back_to_it() -> None:
    spans = Spans()
    answer = asyncio.run(traced(spans, BODY, traceparent=PARENT, **{"x-request-id": "ask-1"}))
    root = spans.root
    assert root.context is not None
    assert root.parent is not None
    assert f"{root.context.trace_id:032x}" == PARENT[3:35]
    assert f"{root.parent.span_id:016x}" == PARENT[36:52]
    assert answer.headers["traceparent"] == f"{PARENT[:35]}-{root.context.span_id:016x}-01"
    assert root.name == "text_completion tiny"
    assert root.kind.name == "SERVER"
    told = attributes(root)
    assert told[names.RESPONSE_ID] == "ask-1"
    assert (told[names.INPUT_TOKENS], told[names.OUTPUT_TOKENS]) == (30, 20)
    assert told[names.FINISH_REASONS] == ("length",)
    assert told[names.REQUEST_MAX_TOKENS] == 20


@pytest.mark.parametrize("stream", [False, True])
def test_a_span_says_what_was_asked_of_the_answer(stream: bool) -> None:
    spans = Spans()
    asyncio.run(traced(spans, BODY | {"stream": stream, "stop": ["never drawn", "nor this"]}))
    told = attributes(spans.root)
    assert told[names.REQUEST_STREAM] is stream
    assert told[names.REQUEST_STOP] == ("never drawn", "nor this")


def test_what_was_not_asked_is_not_told() -> None:
    spans = Spans()
    asyncio.run(traced(spans, BODY))
    assert names.REQUEST_STOP not in attributes(spans.root)
    refused = Spans()
    asyncio.run(traced(refused, BODY | {"stream": True, "max_tokens": 10_000}))
    assert names.REQUEST_STREAM not in attributes(refused.root)


def test_tracestate_goes_with_its_trace() -> None:
    spans = Spans()
    answer = asyncio.run(traced(spans, BODY, traceparent=PARENT, tracestate=STATE))
    assert answer.headers["tracestate"] == STATE
    for span in spans.all:
        assert span.context is not None
        assert span.context.trace_state.to_header() == STATE
    alone = asyncio.run(traced(Spans(), BODY, tracestate=STATE))
    assert "tracestate" not in alone.headers


@pytest.mark.parametrize(
    ("header", "kept"),
    [
        ("a=1 , b=2,", "a=1,b=2"),
        ("t@v=x", "t@v=x"),
        ("A=1", ""),
        ("a", ""),
        ("a=b=c", ""),
        ("a=1,b=é", ""),
        (",".join(f"k{number}=1" for number in range(33)), ""),
    ],
)
def test_a_tracestate_that_is_none_is_not_passed_on(header: str, kept: str) -> None:
    assert arrived(PARENT, header).tracestate == kept
    assert arrived("", header).tracestate == ""


class Exporter(InMemorySpanExporter):
    """In place of the one that sends: keeps which collector it was told of."""

    def __init__(self, endpoint: str | None = None) -> None:
        super().__init__()
        self.endpoint = endpoint
        EXPORTERS.append(self)


EXPORTERS: list[Exporter] = []


@pytest.fixture
def collectors(monkeypatch: pytest.MonkeyPatch) -> list[Exporter]:
    """The exporters that are made, with no collector named by the environment."""
    for one in ENDPOINTS:
        monkeypatch.delenv(one, raising=False)
    module = types.SimpleNamespace(OTLPSpanExporter=Exporter)
    monkeypatch.setitem(sys.modules, "opentelemetry.exporter.otlp.proto.http.trace_exporter", module)
    EXPORTERS.clear()
    return EXPORTERS


@pytest.mark.parametrize("variable", ENDPOINTS)
def test_opentelemetrys_variables_name_a_collector_too(
    variable: str, collectors: list[Exporter], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The exporter reads them itself; what `observe.traces` says goes before them."""
    assert exporting("tiny", None, 1.0) is None
    monkeypatch.setenv(variable, "http://127.0.0.1:9")
    for url in (None, "http://collector:4318/v1/traces"):
        traces = exporting("tiny", url, 1.0)
        assert traces is not None
        traces.close()
    assert [one.endpoint for one in collectors] == [None, "http://collector:4318/v1/traces"]


def test_a_variable_without_opentelemetry_stops_no_gateway(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv(ENDPOINTS[1], "http://127.0.0.1:9")
    monkeypatch.setitem(sys.modules, "opentelemetry.exporter.otlp.proto.http.trace_exporter", None)
    assert exporting("tiny", None, 1.0) is None
    assert "no traces are sent" in caplog.text
    with pytest.raises(SetupError, match="tandem-serving"):
        exporting("tiny", "http://127.0.0.1:9", 1.0)


def test_prompts_and_answers_are_in_no_span() -> None:
    spans = Spans()
    answer = asyncio.run(traced(spans, BODY))
    text = json.dumps([span.to_json() for span in spans.all])
    assert "0123456789" not in text
    assert answer.json()["choices"][0]["text"] not in text


def test_a_client_that_says_no_is_not_traced_and_a_share_is_kept() -> None:
    spans = Spans()
    asyncio.run(traced(spans, BODY, traceparent=f"{PARENT[:-2]}00"))
    assert spans.all == ()
    none = Spans(share=0.0)
    answer = asyncio.run(traced(none, BODY))
    assert none.all == ()
    assert answer.headers["traceparent"].endswith("-00")


@pytest.mark.parametrize(
    "wrong", ["", "x", PARENT.replace("00-0af", "ff-0af"), f"00-{'0' * 32}-{'1' * 16}-01"]
)
def test_a_header_that_is_none_counts_as_absent(wrong: str) -> None:
    arrival = arrived(wrong)
    assert arrival.parent == ""
    assert len(arrival.trace) == 32


def test_several_prompts_are_several_parts_of_one_trace() -> None:
    spans = Spans()
    asyncio.run(traced(spans, BODY | {"prompt": ["one", "two"]}))
    assert [span.name for span in spans.children(spans.root)] == ["prompt 0", "prompt 1"]
    assert {"prefill", "decode"} <= {span.name for span in spans.children(spans.children(spans.root)[1])}


def test_an_answer_that_failed_says_so() -> None:
    spans = Spans()
    answer = asyncio.run(traced(spans, BODY | {"max_tokens": 10_000}))
    assert answer.status_code == 400
    assert attributes(spans.root)[names.ERROR] == "400"
    assert spans.children(spans.root) == []


def test_log_lines_of_a_request_name_it() -> None:
    lines: list[str] = []

    class Keep(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            lines.append(self.format(record))

    handler = Keep()
    handler.setFormatter(JsonFormatter({}))
    logger = logging.getLogger("tandem.gateway")
    logger.addHandler(handler)
    before = logger.level
    logger.setLevel(logging.DEBUG)
    try:
        spans = Spans()
        asyncio.run(traced(spans, BODY | {"user": "ann"}, traceparent=PARENT, **{"x-request-id": "ask-1"}))
    finally:
        logger.removeHandler(handler)
        logger.setLevel(before)
    found = [json.loads(line) for line in lines]
    ended = [one for one in found if one["msg"].startswith("answered")]
    assert len(ended) == 1
    assert (ended[0]["request_id"], ended[0]["trace_id"]) == ("ask-1", PARENT[3:35])
    assert ended[0]["tenant"] == "ann"
    assert "0123456789" not in "".join(lines)


class Clock:
    """Measures from outside how long the gateway has a request: until the last byte of its answer."""

    def __init__(self) -> None:
        self.seconds: list[float] = []

    def around(self, app: ASGIApp) -> ASGIApp:
        async def timed(scope: Scope, receive: Receive, send: Send) -> None:
            begun = time.perf_counter()

            async def answer(message: Message) -> None:
                await send(message)
                if message["type"] == "http.response.body" and not message.get("more_body"):
                    self.seconds.append(time.perf_counter() - begun)

            await app(scope, receive, answer)

        return timed


def service_of(real: Pools) -> GatewayService:
    """What a gateway serves in front of real instances."""
    tokenizer = Tokenizer(real.decode.runner.assets)
    facts = ClusterFacts(_nothing)
    return GatewayService(
        model=ModelCard("tiny", 2048, 0, "none"),
        tokenizer=tokenizer,
        detokenizer=lambda _: Detokenizer(tokenizer),
        driver=real.driver,
        facts=facts,
        metrics=Metrics("tiny", lambda: facts.status),
        config=GatewayConfig(),
        version="0.0",
    )


@asynccontextmanager
async def gateway(real: Pools, spans: Spans, clock: Clock) -> AsyncIterator[httpx.AsyncClient]:
    transport = httpx.ASGITransport(clock.around(build_api(service_of(real), spans.traces)))
    async with httpx.AsyncClient(transport=transport, base_url="http://tandem", timeout=60) as client:
        # The first call of an application builds it.
        await client.get("/version")
        yield client


PER_TOKEN = 0.005
"""Seconds: 300 tokens take 1.5 s, and 1 % of it is more than the ways in and out of the gateway take."""


async def _nothing() -> object:
    raise ConnectionError("there is no controller")


def test_spans_add_up_to_the_time_that_a_client_measures(tmp_path: Path, tiny_model: Path) -> None:
    """Through prefill in chunks, a handoff and a migration; within 1 % of what stands around it sees."""
    spans, clock = Spans(), Clock()

    async def ask() -> float:
        both = pools(tmp_path, prefill=True, decodes=2, budget=32, model=tiny_model)
        async with both as real, gateway(real, spans, clock) as client:
            for one in real.decodes:
                one.runner.dawdle = partial(time.sleep, PER_TOKEN)
            body = {
                "model": "tiny",
                "prompt": "one two three four " * 20,
                "max_tokens": 300,
                "ignore_eos": True,
            }
            asking = asyncio.create_task(client.post("/v1/completions", json=body))
            await _decodes(real)
            (run,) = real.driver.runs.values()
            to = real.decodes[1].instance._receiver.address
            moved = await asyncio.wrap_future(real.decode.instance.move(run.request.id, to, "a test"))
            assert moved.committed, moved
            assert (await asking).status_code == 200
            return clock.seconds[-1]

    measured = asyncio.run(ask())
    root = spans.root
    children = spans.children(root)
    shown = [span.name for span in children]
    assert shown == [
        "admit", "schedule", "queue", "prefill", "kv_transfer", "decode", "migrate", "decode", "respond"
    ]  # fmt: skip
    assert abs(sum(map(seconds, children)) - seconds(root)) < 1e-6 * len(children)
    assert measured > 299 * PER_TOKEN
    assert abs(seconds(root) - measured) < 0.01 * measured
    prefill = children[shown.index("prefill")]
    chunks = spans.children(prefill)
    assert [attributes(chunk)[names.TOKENS] for chunk in chunks][:-1] == [32] * (len(chunks) - 1)
    assert len(chunks) >= 2
    assert abs(sum(map(seconds, chunks)) - seconds(prefill)) < 0.01 * seconds(prefill) + 1e-6
    assert [attributes(span)[names.INSTANCE] for span in children if span.name == "decode"] == [
        "decode-0", "decode-1"
    ]  # fmt: skip


async def _decodes(real: Pools) -> None:
    """Until the one request there is decodes."""
    await until(lambda: any(run.progress.output_tokens > 4 for run in real.driver.runs.values()))
