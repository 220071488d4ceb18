"""One trace per request, made of its timeline when it has been answered, and the header that carries it on.

    client's span ─▶ chat MODEL ─┬ admit ┬ schedule ┬ queue ┬ prefill ┬ kv_transfer ┬ decode … respond
                                 │                           └ prefill.chunk …
                                 └ with several prompts: prompt 0, prompt 1 … around them

Needs the extra `tracing` (OpenTelemetry's SDK) only where `observe.traces`, or else a variable of
OpenTelemetry's, names a collector. Prompts and answers are never recorded.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from cluster import control_pb2 as pb
from cluster import trace_names as names
from cluster.arrival import ARRIVAL, Arrival, arrived
from cluster.genai_metrics import GenAiMetrics
from cluster.move_notes import MoveNotes
from cluster.move_spans import Moves, about, stages
from cluster.otel_resource import resource
from cluster.timeline import DECODE, MIGRATE, PLACE, PREFILL, QUEUE, Phase, Timeline
from engine.errors import SetupError

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import SpanProcessor

logger = logging.getLogger("tandem.gateway")

CHANGED = 2**64
ENDPOINTS = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
"""Variables by which OpenTelemetry's exporter finds a collector that it isn't told."""


class Traces:
    """Turns timelines into spans. `share` of the requests whose client does not say are traced."""

    def __init__(self, model: str, processor: SpanProcessor, share: float = 1.0) -> None:
        """Raises SetupError where OpenTelemetry is not installed."""
        try:
            from opentelemetry.sdk.trace import TracerProvider
            from opentelemetry.sdk.trace.sampling import ALWAYS_ON
        except ImportError as error:
            raise SetupError(
                "observe.traces needs OpenTelemetry: pip install 'tandem-serving[tracing]'",
                param="observe.traces",
            ) from error
        self._model = model
        self._share = share
        self._ids = _ids()
        self._provider = TracerProvider(
            sampler=ALWAYS_ON,
            id_generator=self._ids,
            resource=resource(),
            shutdown_on_exit=False,
        )
        self._provider.add_span_processor(processor)
        self._tracer = self._provider.get_tracer("tandem")

    def sampled(self, arrival: Arrival) -> bool:
        """The client's own decision where it made one; else one that every gateway makes alike."""
        if arrival.parent:
            return arrival.sampled
        return int(arrival.trace[16:], 16) < self._share * CHANGED

    def export(
        self,
        arrival: Arrival,
        path: str,
        status: int,
        now: float,
        *,
        streamed: bool = False,
        moves: Mapping[str, Sequence[pb.Migration]] = {},
    ) -> None:
        """The request has been answered at `now`, monotonic; `moves` are those of its timelines, by id."""
        from opentelemetry.trace import SpanKind, set_span_in_context

        offset = time.time() - time.monotonic()
        operation = names.OPERATIONS.get(path, "request")
        self._ids.next_trace, self._ids.next_span = int(arrival.trace, 16), int(arrival.span, 16)
        root = self._tracer.start_span(
            f"{operation} {self._model}",
            _parent(arrival),
            SpanKind.SERVER,
            attributes=_request_attributes(arrival, operation, self._model, status)
            | _way_of_answering(status, streamed=streamed),
            start_time=_nanoseconds(arrival.begun + offset),
        )
        inside = set_span_in_context(root)
        for number, timeline in enumerate(arrival.timelines):
            known = Moves(moves.get(timeline.id, ()), timeline.phases, now, offset)
            if len(arrival.timelines) == 1:
                self._phases(timeline, inside, now, offset, known)
                continue
            end = timeline.ended or now
            prompt = self._tracer.start_span(
                f"{names.PROMPT} {number}", inside, start_time=_nanoseconds(timeline.began + offset)
            )
            self._phases(timeline, set_span_in_context(prompt), now, offset, known)
            prompt.end(_nanoseconds(end + offset))
        root.end(_nanoseconds(now + offset))

    def close(self) -> None:
        """Send what is left, bounded by the exporter's own timeout."""
        self._provider.shutdown()

    def _phases(self, timeline: Timeline, inside: Any, now: float, offset: float, moves: Moves) -> None:
        from opentelemetry.trace import set_span_in_context

        for phase in timeline.phases:
            end = now if phase.end is None else phase.end
            span = self._tracer.start_span(
                names.SPANS[phase.name],
                inside,
                attributes=_phase_attributes(phase),
                start_time=_nanoseconds(phase.start + offset),
            )
            begun = phase.start
            for tokens, at in phase.chunks:
                chunk = self._tracer.start_span(
                    names.CHUNK,
                    set_span_in_context(span),
                    attributes={names.TOKENS: tokens, names.INSTANCE: phase.instance},
                    start_time=_nanoseconds(begun + offset),
                )
                chunk.end(_nanoseconds(at + offset))
                begun = at
            made = moves.made(phase)
            if made is not None:
                self._stages(span, made, end, offset)
            for move, at in moves.given_up(phase):
                begun = max(phase.start, at - move.seconds)
                stayed = self._tracer.start_span(
                    names.SPANS[MIGRATE], set_span_in_context(span), start_time=_nanoseconds(begun + offset)
                )
                self._stages(stayed, move, at, offset)
                stayed.end(_nanoseconds(at + offset))
            span.end(_nanoseconds(end + offset))

    def _stages(self, span: Any, move: pb.Migration, end: float, offset: float) -> None:
        """What a move that ended at `end` was and went through, on its span."""
        span.set_attributes(about(move))
        for stage in stages(move, end):
            span.add_event(stage.name, stage.about, _nanoseconds(stage.at + offset))


class Traced:
    """Around the gateway's application: notes when a request came and when it has been answered."""

    def __init__(
        self,
        app: ASGIApp,
        traces: Traces | None = None,
        measures: GenAiMetrics | None = None,
        moves: MoveNotes | None = None,
    ) -> None:
        self._app = app
        self._traces = traces
        self._measures = measures
        self._moves = moves

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        given = Headers(scope=scope)
        arrival = arrived(given.get("traceparent", ""), ",".join(given.getlist("tracestate")))
        arrival.state = scope.setdefault("state", {})
        arrival.sampled = self._traces is not None and self._traces.sampled(arrival)
        status, streamed = 500, False
        moves = 0 if self._moves is None else self._moves.count()

        async def answer(message: Message) -> None:
            nonlocal status, streamed
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = MutableHeaders(raw=message["headers"])
                streamed = headers.get("content-type", "").startswith("text/event-stream")
                _tell(headers, arrival)
            await send(message)

        before = ARRIVAL.set(arrival)
        try:
            await self._app(scope, receive, answer)
        finally:
            now = time.monotonic()
            for timeline in arrival.timelines:
                timeline.answered(now)
                outcome = timeline.outcome or "goes on without a reader"
                logger.debug("answered in %.3f s: %s", now - arrival.begun, outcome)
            if self._measures is not None:
                self._measures.answered(arrival, scope["path"], status, now)
            if self._traces is not None and arrival.sampled and scope["path"] in names.OPERATIONS:
                export = partial(self._traces.export, arrival, scope["path"], status, now, streamed=streamed)
                if self._moves is not None and self._moves.worth_asking(arrival, moves):
                    self._moves.later(_with_moves(self._moves, arrival, export))
                else:
                    export()
            ARRIVAL.reset(before)


async def _with_moves(notes: MoveNotes, arrival: Arrival, export: Callable[..., None]) -> None:
    export(moves=await notes.find(arrival))


def exporting(model: str, url: str | None, share: float) -> Traces | None:
    """To the collector at `url`, else to the one that OpenTelemetry's variables name; None without one.

    Raises SetupError where OpenTelemetry is missing, and `url` asks for it.
    """
    if url is not None:
        return _exporting(model, url, share)
    if not any(map(os.environ.get, ENDPOINTS)):
        return None
    try:
        return _exporting(model, None, share)
    except SetupError as error:
        logger.warning("no traces are sent: %s", error.message)
        return None


def _tell(headers: MutableHeaders, arrival: Arrival) -> None:
    """The trace that an answer belongs to, in its headers."""
    headers["traceparent"] = arrival.traceparent
    if arrival.tracestate:
        headers["tracestate"] = arrival.tracestate


def _exporting(model: str, url: str | None, share: float) -> Traces:
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError as error:
        raise SetupError(
            "observe.traces needs OpenTelemetry: pip install 'tandem-serving[tracing]'",
            param="observe.traces",
        ) from error
    return Traces(model, BatchSpanProcessor(OTLPSpanExporter(endpoint=url)), share)


def _nanoseconds(seconds: float) -> int:
    return int(seconds * 1e9)


def _parent(arrival: Arrival) -> Any:
    """The client's span as a context; an empty one, and not that of this task, without."""
    from opentelemetry.context import Context
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

    if not arrival.parent:
        return Context()
    headers = {"traceparent": arrival.parent, "tracestate": arrival.tracestate}
    return TraceContextTextMapPropagator().extract(headers, Context())


def _request_attributes(arrival: Arrival, operation: str, model: str, status: int) -> dict[str, Any]:
    found: dict[str, Any] = {
        names.OPERATION: operation,
        names.PROVIDER_NAME: names.PROVIDER,
        names.REQUEST_MODEL: model,
        names.RESPONSE_MODEL: model,
        names.RESPONSE_ID: arrival.request_id,
        "http.response.status_code": status,
    }
    if status >= 400:
        found[names.ERROR] = str(status)
    for one in arrival.timelines[:1]:
        found |= one.asked
        found |= {
            names.TIME_IN_QUEUE: one.spent(PLACE, QUEUE),
            names.TIME_IN_PREFILL: one.spent(PREFILL),
            names.TIME_IN_DECODE: one.spent(DECODE),
            names.FINISH_REASONS: one.outcome.split(),
            names.TENANT: one.tenant,
        }
        if one.ttft is not None:
            found[names.TIME_TO_FIRST_TOKEN] = one.ttft
        if one.detail:
            found[names.ERROR] = one.outcome
    found[names.INPUT_TOKENS] = sum(one.prompt_tokens for one in arrival.timelines)
    found[names.OUTPUT_TOKENS] = sum(one.output_tokens for one in arrival.timelines)
    found[names.CACHED_TOKENS] = sum(one.cached for one in arrival.timelines)
    return found


def _way_of_answering(status: int, *, streamed: bool) -> dict[str, bool]:
    """Whether the client asked for a stream: an answer shows it, a refusal does not."""
    return {names.REQUEST_STREAM: streamed} if status < 400 else {}


def _phase_attributes(phase: Phase) -> Mapping[str, Any]:
    found: dict[str, Any] = {names.TOKENS: phase.tokens}
    if phase.instance:
        found[names.INSTANCE] = phase.instance
    if phase.reason:
        found[names.REASON] = phase.reason
    return found


def _ids() -> Any:
    """Gives the ids that the answer's header has told already, then random ones."""
    from opentelemetry.sdk.trace.id_generator import RandomIdGenerator

    class Ids(RandomIdGenerator):
        next_trace = 0
        next_span = 0

        def generate_span_id(self) -> int:
            given, self.next_span = self.next_span, 0
            return given or super().generate_span_id()

        def generate_trace_id(self) -> int:
            given, self.next_trace = self.next_trace, 0
            return given or super().generate_trace_id()

    return Ids()
