"""The HTTP request that is being answered in this task: when it came, and the trace that it belongs to.

W3C Trace Context: `traceparent: 00-<trace, 32 hex>-<span, 16 hex>-<flags, 2 hex>`.
"""

from __future__ import annotations

import re
import secrets
import time
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

from cluster.timeline import Timeline

_PARENT = re.compile(r"(?!ff)[0-9a-f]{2}-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(?:-.*)?")


@dataclass(slots=True)
class Arrival:
    """`begun` is monotonic. `trace` and `span` are ours, `parent` the header of whoever called."""

    begun: float
    trace: str = field(default_factory=lambda: secrets.token_hex(16))
    span: str = field(default_factory=lambda: secrets.token_hex(8))
    parent: str = ""
    sampled: bool = False
    state: dict[str, Any] = field(default_factory=dict)
    timelines: list[Timeline] = field(default_factory=list)

    @property
    def request_id(self) -> str:
        """The id under which the request is answered, '' before it has one."""
        return str(self.state.get("request_id", ""))

    @property
    def traceparent(self) -> str:
        """What those we call are told."""
        return f"00-{self.trace}-{self.span}-{'01' if self.sampled else '00'}"


ARRIVAL: ContextVar[Arrival | None] = ContextVar("arrival", default=None)


def arrived(traceparent: str) -> Arrival:
    """A request has come now. A `traceparent` that is none counts as absent, as the specification says."""
    now = time.monotonic()
    found = _PARENT.fullmatch(traceparent.strip())
    if found is None or not int(found[1], 16) or not int(found[2], 16):
        return Arrival(now)
    return Arrival(now, trace=found[1], parent=found[0], sampled=bool(int(found[3], 16) & 1))


def traceparent() -> str:
    """Of the request that is being answered in this task, '' outside of one."""
    arrival = ARRIVAL.get()
    return "" if arrival is None else arrival.traceparent
