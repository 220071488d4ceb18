"""How many gateways Ray Serve should run: a policy for its autoscaler, by requests under way.

autoscaling_config:
  min_replicas: 1
  max_replicas: 4
  policy:
    policy_function: cluster.serve_scaling:RequestsPerGateway
    policy_kwargs: {requests: 64}

Serve itself sees only what comes through its proxy. Each gateway tells it of all requests, those at its own
port too, as the metric REQUESTS. Pools are not Serve's to size: their instances are no replicas.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Protocol

REQUESTS = "requests"


class Context(Protocol):
    """What of Serve's AutoscalingContext the policy reads."""

    current_num_replicas: int
    capacity_adjusted_min_replicas: int
    capacity_adjusted_max_replicas: int

    @property
    def aggregated_metrics(self) -> Mapping[str, Mapping[Any, float]] | None: ...


class RequestsPerGateway:
    """So many gateways that none has more than `requests` under way; Serve's own delays damp it."""

    def __init__(self, requests: int = 64) -> None:
        if requests < 1:
            raise ValueError(f"requests: at least 1 a gateway, not {requests}")
        self._requests = requests

    def __call__(self, context: Context) -> tuple[int, dict[str, Any]]:
        told = (context.aggregated_metrics or {}).get(REQUESTS, {})
        # Until the gateways have told anything, nothing is known, and nothing changes.
        wanted = math.ceil(sum(told.values()) / self._requests) if told else context.current_num_replicas
        least, most = context.capacity_adjusted_min_replicas, context.capacity_adjusted_max_replicas
        return max(least, min(most, wanted)), {}
