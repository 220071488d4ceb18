"""How long answers took, as OpenTelemetry's GenAI conventions name it, sent to a collector once a minute.

    gen_ai.server.request.duration        of every request, those that failed with their error.type
    gen_ai.server.time_to_first_token     of those that were answered
    gen_ai.server.time_per_output_token   of those that were answered, after the first token

`/metrics` tells the same and more under the names of vLLM and our own; this is for who has a collector and
no Prometheus. Needs the extra `tracing` only where `observe.metrics`, or else a variable of OpenTelemetry's,
names a collector.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING

from cluster import trace_names as names
from cluster.arrival import Arrival
from cluster.otel_resource import resource
from engine.errors import SetupError

if TYPE_CHECKING:
    from opentelemetry.metrics import Histogram
    from opentelemetry.sdk.metrics.export import MetricReader

logger = logging.getLogger("tandem.gateway")

ENDPOINTS = ("OTEL_EXPORTER_OTLP_METRICS_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
EXPORTER = "OTEL_METRICS_EXPORTER"
"""Where it says `none`, no variable turns metrics on: a collector may take traces alone."""

DURATIONS = (0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.28, 2.56, 5.12, 10.24, 20.48, 40.96, 81.92)
FIRST_TOKENS = (
    *(0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75),
    *(1.0, 2.5, 5.0, 7.5, 10.0),
)
OUTPUT_TOKENS = (0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5)
"""Upper bounds of buckets in seconds, as the conventions advise."""

CANCELLED = "cancelled"
NEEDED = "observe.metrics needs OpenTelemetry: pip install 'tandem-serving[tracing]'"


class GenAiMetrics:
    """Three histograms of one gateway, which `reader` collects and sends."""

    def __init__(self, model: str, reader: MetricReader) -> None:
        """Raises SetupError where OpenTelemetry is not installed."""
        try:
            from opentelemetry.sdk.metrics import MeterProvider
        except ImportError as error:
            raise SetupError(NEEDED, param="observe.metrics") from error
        self._model = model
        self._provider = MeterProvider([reader], resource(), shutdown_on_exit=False)
        self._duration = self._histogram(
            names.REQUEST_DURATION, "From the arrival of a request to the end of its answer.", DURATIONS
        )
        self._first = self._histogram(
            names.SERVER_TIME_TO_FIRST_TOKEN,
            "From the arrival of an answered request to its first token.",
            FIRST_TOKENS,
        )
        self._rest = self._histogram(
            names.SERVER_TIME_PER_OUTPUT_TOKEN,
            "Per token after the first of an answered request.",
            OUTPUT_TOKENS,
        )

    def _histogram(self, name: str, text: str, buckets: Sequence[float]) -> Histogram:
        meter = self._provider.get_meter("tandem")
        return meter.create_histogram(name, "s", text, explicit_bucket_boundaries_advisory=buckets)

    def answered(self, arrival: Arrival, path: str, status: int, now: float) -> None:
        """A request has been answered at `now`, monotonic; of other paths nothing is kept."""
        operation = names.OPERATIONS.get(path)
        if operation is None:
            return
        about = {
            names.OPERATION: operation,
            names.PROVIDER_NAME: names.PROVIDER,
            names.REQUEST_MODEL: self._model,
            names.RESPONSE_MODEL: self._model,
        }
        wrong = _wrong(arrival, status)
        self._duration.record(now - arrival.begun, about | ({names.ERROR: wrong} if wrong else {}))
        if wrong:
            return
        for timeline in arrival.timelines:
            if timeline.ttft is not None:
                self._first.record(timeline.ttft, about)
            if timeline.tpot is not None:
                self._rest.record(timeline.tpot, about)

    def close(self) -> None:
        """Send what is left, bounded by the exporter's own timeout."""
        self._provider.shutdown()


def measuring(model: str, url: str | None) -> GenAiMetrics | None:
    """To the collector at `url`, else to the one that OpenTelemetry's variables name; None without one.

    Raises SetupError where OpenTelemetry is missing, and `url` asks for it.
    """
    if url is not None:
        return _exporting(model, url)
    if not any(map(os.environ.get, ENDPOINTS)) or os.environ.get(EXPORTER, "").strip().lower() == "none":
        return None
    try:
        return _exporting(model, None)
    except SetupError as error:
        logger.warning("no metrics are sent: %s", error.message)
        return None


def _exporting(model: str, url: str | None) -> GenAiMetrics:
    try:
        from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter
        from opentelemetry.sdk.metrics.export import PeriodicExportingMetricReader
    except ImportError as error:
        raise SetupError(NEEDED, param="observe.metrics") from error
    return GenAiMetrics(model, PeriodicExportingMetricReader(OTLPMetricExporter(endpoint=url)))


def _wrong(arrival: Arrival, status: int) -> str:
    """What kept a request from its whole answer, ''."""
    if status >= 400:
        return str(status)
    for timeline in arrival.timelines:
        if timeline.detail or timeline.outcome == CANCELLED:
            return timeline.outcome
    return ""
