"""The HTTP request that is being answered in this task: when it came, and the trace that it belongs to.

W3C Trace Context: `traceparent: 00-<trace, 32 hex>-<span, 16 hex>-<flags, 2 hex>`, and beside it what tracing
systems say of the trace: `tracestate: <key>=<value>,…`, which is passed on as it came.
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
_MEMBER = re.compile(r"[a-z0-9][a-z0-9_*/@-]{0,255}=[\x20-\x2b\x2d-\x3c\x3e-\x7e]{1,256}")
_MOST_MEMBERS = 32


@dataclass(slots=True)
class Arrival:
    """`begun` is monotonic. `trace` and `span` are ours, `parent` the header of whoever called."""

    begun: float
    trace: str = field(default_factory=lambda: secrets.token_hex(16))
    span: str = field(default_factory=lambda: secrets.token_hex(8))
    parent: str = ""
    tracestate: str = ""
    sampled: bool = False
    state: dict[str, Any] = field(default_factory=dict)
    timelines: list[Timeline] = field(default_factory=list)

    @property
    def request_id(self) -> str:
        """The id under which the request is answered, '' before it has one."""
        return str(self.state.get("request_id", ""))

    @property
    def tenant(self) -> str:
        """Whose request it is: the one that it is counted for, or that its key belongs to; '' of nobody's."""
        known = [timeline.tenant for timeline in self.timelines] or [str(self.state.get("tenant", ""))]
        return known[0]

    @property
    def traceparent(self) -> str:
        """What those we call are told."""
        return f"00-{self.trace}-{self.span}-{'01' if self.sampled else '00'}"


ARRIVAL: ContextVar[Arrival | None] = ContextVar("arrival", default=None)


def arrived(traceparent: str, tracestate: str = "") -> Arrival:
    """A request has come now.

    A `traceparent` that is none counts as absent, and its `tracestate` with it, as the specification says.
    """
    now = time.monotonic()
    found = _PARENT.fullmatch(traceparent.strip())
    if found is None or not int(found[1], 16) or not int(found[2], 16):
        return Arrival(now)
    sampled = bool(int(found[3], 16) & 1)
    return Arrival(now, trace=found[1], parent=found[0], sampled=sampled, tracestate=_members(tracestate))


def traceparent() -> str:
    """Of the request that is being answered in this task, '' outside of one."""
    arrival = ARRIVAL.get()
    return "" if arrival is None else arrival.traceparent


def _members(tracestate: str) -> str:
    """The header's members in their order, '' if one of them is none or there are too many."""
    members = [one.strip() for one in tracestate.split(",") if one.strip()]
    if len(members) > _MOST_MEMBERS or not all(map(_MEMBER.fullmatch, members)):
        return ""
    return ",".join(members)
