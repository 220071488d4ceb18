"""Who sends traces and metrics, as OpenTelemetry's collector sees it."""

from __future__ import annotations

import uuid
from typing import TYPE_CHECKING

from cluster import trace_names as names

if TYPE_CHECKING:
    from opentelemetry.sdk.resources import Resource

_ITSELF = str(uuid.uuid4())


def resource() -> Resource:
    """This process; what OTEL_SERVICE_NAME and OTEL_RESOURCE_ATTRIBUTES say goes before what is said here.

    Raises ImportError where OpenTelemetry is not installed.
    """
    from opentelemetry.sdk.resources import OTELResourceDetector, Resource

    # A gateway's totals are its own: without an id those of another one would stand in their place.
    ours = {"service.name": names.SERVICE, "service.instance.id": _ITSELF}
    return Resource.create(ours).merge(OTELResourceDetector().detect())
