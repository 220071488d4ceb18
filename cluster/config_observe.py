"""The settings of what is measured, remembered and told of requests."""

from __future__ import annotations

from pydantic import Field

from cluster.config_section import Count, Section
from cluster.units import Duration


class ObserveConfig(Section):
    """What is measured and remembered of requests. Prompts and answers are never recorded."""

    slo_ttft: Duration = Field(
        2.5, gt=0, description="The objective for the time to first token, for metrics and the console."
    )
    slo_tpot: Duration = Field(
        0.2, gt=0, description="The objective for the time per output token after the first."
    )
    window: Duration = Field(
        60.0, gt=0, description="Over how long the share of requests that meet them is taken."
    )
    tenants: Count = Field(
        100, description="The most tenants with series of their own; later ones are counted as `other`."
    )
    instances: Count = Field(
        256, description="The most instances with series of their own; the rest have none."
    )
    finished: Count = Field(1000, description="How many finished requests each gateway can still describe.")
    traces: str | None = Field(
        None,
        description="The URL of an OpenTelemetry collector (OTLP over HTTP, such as "
        "`http://127.0.0.1:4318/v1/traces`) that gets one trace per request. Null: the one that "
        "`OTEL_EXPORTER_OTLP_ENDPOINT` names, if any.",
    )
    metrics: str | None = Field(
        None,
        description="The URL of an OpenTelemetry collector (such as `http://127.0.0.1:4318/v1/metrics`) that "
        "gets each gateway's `gen_ai.server.*` metrics. Null: the one that "
        "`OTEL_EXPORTER_OTLP_ENDPOINT` names, if any. `/metrics` tells the same without it.",
    )
    sampling: float = Field(
        1.0,
        ge=0,
        le=1,
        description="The share of requests that are traced, where the client's `traceparent` does not say.",
    )
