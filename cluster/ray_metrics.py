"""The gateway's metrics once more through Ray's own: each node's agent exports them beside Ray's.

`vllm:kv_cache_usage_perc` is `ray_vllm_kv_cache_usage_perc` there. Every series is a gauge to Ray,
which has no way to set a counter; queries read the same, for names and values are those of /metrics.
"""

from __future__ import annotations

from collections.abc import Callable

from prometheus_client import CollectorRegistry
from ray.util.metrics import Gauge

PERIOD = 5.0
"""Seconds between two copies: Ray's agents export every ten by default."""


class RayMetrics:
    """Copies a registry. `gauge` makes one of a name, a text and the names of its labels."""

    def __init__(
        self,
        registry: CollectorRegistry,
        gauge: Callable[[str, str, tuple[str, ...]], Gauge] = lambda name, text, keys: Gauge(
            name, text, keys
        ),
    ) -> None:
        self._registry = registry
        self._make = gauge
        self._known: dict[str, Gauge] = {}

    def copy(self) -> None:
        """Everything as it is now."""
        for family in self._registry.collect():
            for sample in family.samples:
                name = sample.name.replace(":", "_")
                if name not in self._known:
                    keys = tuple(sample.labels)
                    self._known[name] = self._make(name, family.documentation or name, keys)
                tags = {key: _ascii(value) for key, value in sample.labels.items()}
                self._known[name].set(sample.value, tags=tags)


def _ascii(value: str) -> str:
    """Ray takes no other letters; a tenant may have any."""
    return value.encode("ascii", "backslashreplace").decode()
