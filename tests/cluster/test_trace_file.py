"""Timelines in Chrome's trace format: nested slices without gaps, on a track for each request."""

from __future__ import annotations

import json
from itertools import pairwise
from typing import Any

from cluster import control_pb2 as pb
from cluster.timeline import Timeline
from cluster.trace_file import CONTROLLER, trace_file
from cluster.trace_names import SPANS

BEGAN = 1_800_000_000.123456789


def told(id: str = "r~1-0", gateway: str = "gateway-0", offset: float = 0.0) -> pb.Timeline:
    """A request that was handed over and moved, with times that are no whole microseconds."""
    one = Timeline(id, tenant="ann", trace="f" * 32, prompt_tokens=30, began=10.0, now=10.0000003)
    one.placed("prefill-0", "decode-1", "least loaded", 10.0000017)
    chunks = [pb.Chunk(tokens=16, age=0.2000004), pb.Chunk(tokens=14)]
    one.tokens("prefill-0", pb.Tokens(index=0, prefill_seconds=0.5, chunks=chunks), 1, 11.0000006)
    one.moved("decode-1", 11.3333333)
    one.tokens("decode-1", pb.Tokens(index=1), 1, 11.7777777)
    one.moved("decode-2", 11.8888888)
    one.finish("stop", "", 12.9999999)
    one.answered(13.0)
    return one.message(gateway, 13.0, BEGAN - 10.0 + offset)


def slices(body: dict[str, Any], thread: int = 1) -> list[dict[str, Any]]:
    return [one for one in body["traceEvents"] if one["ph"] == "X" and one["tid"] == thread]


def faults(found: list[dict[str, Any]]) -> list[str]:
    """What a viewer would draw wrongly: slices that overlap and are not within each other; gaps."""
    wrong = []
    for number, one in enumerate(found):
        start, end = one["ts"], one["ts"] + one["dur"]
        if end < start:
            wrong.append(f"{one['name']} ends before it begins")
        for other in found[number + 1 :]:
            first, last = other["ts"], other["ts"] + other["dur"]
            if max(start, first) < min(end, last) and not (start <= first and last <= end):
                wrong.append(f"{other['name']} is across {one['name']}")
    phases = [one for one in found if one["name"] in SPANS.values()]
    wrong += [
        f"a gap before {after['name']}"
        for before, after in pairwise(phases)
        if before["ts"] + before["dur"] != after["ts"]
    ]
    return wrong


def test_phases_follow_without_gap_within_the_request_and_chunks_stand_in_the_prefill() -> None:
    found = slices(trace_file([told()], []))
    assert [one["name"] for one in found] == [
        "request", "admit", "schedule", "queue", "prefill", "prefill.chunk", "prefill.chunk",
        "kv_transfer", "decode", "migrate", "decode", "respond",
    ]  # fmt: skip
    assert faults(found) == []
    whole, last = found[0], found[-1]
    assert whole["ts"] == found[1]["ts"] == round(BEGAN * 1e6)
    assert whole["ts"] + whole["dur"] == last["ts"] + last["dur"]


def test_ends_that_are_rounded_apart_would_be_found() -> None:
    found = slices(trace_file([told()], []))
    found[3]["dur"] += 1
    assert faults(found) == [
        "prefill is across queue",
        "prefill.chunk is across queue",
        "a gap before prefill",
    ]


def test_what_is_known_stands_with_each_slice_and_nothing_that_is_not() -> None:
    found = {one["name"]: one["args"] for one in slices(trace_file([told()], []))}
    assert found["request"] == {
        "trace_id": "f" * 32, "tenant": "ann", "outcome": "stop", "prompt_tokens": 30, "output_tokens": 2,
        "ttft_ms": 1000 * told().ttft,
    }  # fmt: skip
    assert found["schedule"] == {"reason": "least loaded"}
    assert found["migrate"] == {"instance": "decode-2", "reason": "decode-1 to decode-2"}
    assert found["prefill.chunk"] == {"tokens": 14}


def test_each_request_has_a_track_under_its_gateway_in_the_order_of_arrival() -> None:
    body = trace_file([told("b~1-0", "gateway-1", 1.0), told("a~1-0", "gateway-0")], [])
    names = [
        (one["name"], one["pid"], one["tid"], one["args"]["name"])
        for one in body["traceEvents"]
        if one["ph"] == "M"
    ]
    assert names == [
        ("process_name", CONTROLLER, 0, "controller"),
        ("process_name", 2, 0, "gateway-0"),
        ("process_name", 3, 0, "gateway-1"),
        ("thread_name", 2, 1, "a~1-0"),
        ("thread_name", 3, 2, "b~1-0"),
    ]
    assert len(slices(body, 1)) == len(slices(body, 2)) == 12


def test_the_controllers_events_are_there_from_the_first_request_on() -> None:
    events = [pb.Event(id=at, time=BEGAN + at - 1.5, kind="died", subject=f"decode-{at}") for at in range(3)]
    body = trace_file([told()], events)
    instants = [one for one in body["traceEvents"] if one["ph"] == "i"]
    assert [(one["args"]["subject"], one["pid"]) for one in instants] == [("decode-2", CONTROLLER)]


def test_nothing_is_a_file_too_and_all_of_it_is_json() -> None:
    assert json.loads(json.dumps(trace_file([], [])))["traceEvents"][0]["args"]["name"] == "controller"
    body = trace_file([told()], [])
    assert json.loads(json.dumps(body)) == body
