"""Timelines as one file in Chrome's trace format, which ui.perfetto.dev and chrome://tracing open.

process  gateway ─ thread  request ─ slices  request ┬ admit ┬ schedule ┬ queue ┬ prefill ┬ decode … respond
         controller ─ instants: its events                                   └ prefill.chunk …

Times are in microseconds since 1970. Prompts and answers are no part of timelines.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from cluster import control_pb2 as pb
from cluster.trace_names import CHUNK, SPANS

Event = dict[str, Any]

CONTROLLER = 1
"""The process of the controller; those of gateways follow."""


def trace_file(timelines: Sequence[pb.Timeline], events: Iterable[pb.Event]) -> Event:
    """The whole file as JSON values: a track for each request, and what the controller did meanwhile."""
    gateways = {
        name: CONTROLLER + 1 + at for at, name in enumerate(sorted({one.gateway for one in timelines}))
    }
    found = [_named("process_name", CONTROLLER, 0, "controller")]
    found += [_named("process_name", process, 0, name) for name, process in gateways.items()]
    for thread, timeline in enumerate(sorted(timelines, key=lambda one: one.began), 1):
        process = gateways[timeline.gateway]
        found.append(_named("thread_name", process, thread, timeline.id))
        found += _request(timeline, {"pid": process, "tid": thread})
    begins = min((one.began for one in timelines), default=0.0)
    ends = max((one.began + one.seconds for one in timelines), default=0.0)
    found += [_instant(event) for event in events if begins <= event.time <= ends]
    return {"displayTimeUnit": "ms", "traceEvents": found}


def _request(timeline: pb.Timeline, track: Event) -> Iterator[Event]:
    asked = {
        "trace_id": timeline.trace_id,
        "tenant": timeline.tenant,
        "outcome": timeline.outcome or "running",
        "error": timeline.detail,
        "prompt_tokens": timeline.prompt_tokens,
        "cached_tokens": timeline.cached_tokens,
        "output_tokens": timeline.output_tokens,
        "ttft_ms": 1000 * timeline.ttft if timeline.HasField("ttft") else None,
        "tpot_ms": 1000 * timeline.tpot if timeline.HasField("tpot") else None,
    }
    began = _microseconds(timeline.began)
    phases = list(_phases(timeline, began))
    ends = max((end for _, _, _, end in phases), default=began + _microseconds(timeline.seconds))
    for name, told, start, end in [("request", asked, began, ends), *phases]:
        known = {key: value for key, value in told.items() if value not in ("", 0, None)}
        length = {"ts": start, "dur": end - start}
        yield {"name": name, "cat": "request", "ph": "X", **length, **track, "args": known}


def _phases(timeline: pb.Timeline, began: int) -> Iterator[tuple[str, Event, int, int]]:
    """Name, what is told, start, end. Each begins where the one before ended: rounding leaves no gap."""
    at = began
    for phase in timeline.phases:
        start, over = at, phase.start + phase.seconds
        at = max(at, began + _microseconds(over))
        told = {"instance": phase.instance, "reason": phase.reason, "tokens": phase.tokens}
        yield SPANS.get(phase.name, phase.name), told, start, at
        for chunk in phase.chunks:
            done = min(at, max(start, began + _microseconds(over - chunk.age)))
            yield CHUNK, {"tokens": chunk.tokens}, start, done
            start = done


def _instant(event: pb.Event) -> Event:
    return {
        "name": event.kind, "cat": "controller", "ph": "i", "s": "p", "pid": CONTROLLER, "tid": 0,
        "ts": _microseconds(event.time), "args": {"subject": event.subject, "reason": event.reason},
    }  # fmt: skip


def _named(kind: str, process: int, thread: int, name: str) -> Event:
    return {"name": kind, "ph": "M", "pid": process, "tid": thread, "args": {"name": name}}


def _microseconds(seconds: float) -> int:
    return round(seconds * 1e6)
