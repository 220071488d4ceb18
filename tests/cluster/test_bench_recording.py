"""What a recorded answer says: the figures follow from when bytes came, however they were cut."""

from __future__ import annotations

import itertools
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.bench.recording import Outcome, Recording, read
from cluster.bench.result import Result, result
from cluster.bench.workload import Objectives, closed

HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n"
PLAIN = HEAD + b"\r\n"
CHUNKED = HEAD + b"Transfer-Encoding: chunked\r\n\r\n"


def event(text: str | None = None, finish: str | None = None, **more: Any) -> bytes:
    choices = [] if text is None else [{"index": 0, "text": text, "finish_reason": finish}]
    return f"data: {json.dumps({'choices': choices, **more})}\n\n".encode()


def usage(prompt: int, completion: int) -> bytes:
    return event(usage={"prompt_tokens": prompt, "completion_tokens": completion})


def chunk(data: bytes) -> bytes:
    return f"{len(data):x}\r\n".encode() + data + b"\r\n"


def outcome(*pieces: tuple[float, bytes], head: bytes = PLAIN, begun: float = 0.0) -> Outcome:
    recording = Recording(begun, [(begun, head), *pieces])
    return read(recording, prompt_tokens=5, asked_tokens=3)


def test_times_are_those_of_the_pieces_that_brought_the_tokens() -> None:
    found = outcome(
        (2.5, event("a")), (2.75, event("b")), (3.5, event("c", "length")), (3.5, usage(9, 3)), begun=2.0
    )
    assert found.ok
    assert (found.ttft, found.tpot, found.gaps, found.latency) == (0.5, 0.5, (0.25, 0.75), 1.5)
    assert (found.prompt_tokens, found.output_tokens) == (9, 3)


STREAM = chunk(b": ping\n\n") + chunk(event("a")) + chunk(event("b") + event("c", "stop")) + b"0\r\n\r\n"


@given(st.lists(st.integers(1, len(STREAM) - 1), unique=True, max_size=12))
def test_however_the_stream_is_cut_an_event_comes_with_the_piece_that_completes_it(cuts: list[int]) -> None:
    places = [0, *sorted(cuts), len(STREAM)]
    pieces = [
        (float(number), STREAM[first:last]) for number, (first, last) in enumerate(itertools.pairwise(places))
    ]
    found = outcome(*pieces, head=CHUNKED)
    assert found.ok and len(found.times) == 3
    for time, name in zip(found.times, (b'"a"', b'"b"', b'"c"'), strict=True):
        line_end = STREAM.index(b"\n", STREAM.index(name))
        assert time == next(number for number, last in enumerate(places[1:]) if last > line_end)


def test_several_tokens_in_one_event_count_as_the_server_counts_them() -> None:
    found = outcome((1.0, event("a")), (2.0, event("bcd", "length")), (2.0, usage(5, 5)))
    assert (found.output_tokens, found.tpot, len(found.times)) == (5, 0.25, 2)


def test_without_usage_events_are_tokens() -> None:
    found = outcome((1.0, event("a")), (2.0, event("b")))
    assert (found.prompt_tokens, found.output_tokens) == (5, 2)


def test_a_closing_event_without_text_is_no_token_but_an_empty_one_in_between_is() -> None:
    found = outcome((1.0, event("a")), (2.0, event("")), (3.0, event("b")), (9.0, event("", "stop")))
    assert found.times == (1.0, 2.0, 3.0)


def test_the_opening_role_of_a_chat_is_no_token() -> None:
    def delta(**content: str) -> bytes:
        return f"data: {json.dumps({'choices': [{'delta': content, 'finish_reason': None}]})}\n\n".encode()

    found = outcome((1.0, delta(role="assistant", content="")), (2.0, delta(content="a")))
    assert found.times == (2.0,)


def test_one_token_has_no_tpot_and_meets_any() -> None:
    found = outcome((1.0, event("a", "length")))
    assert found.tpot is None and found.meets(1.0, 0.0)


@pytest.mark.parametrize(
    ("head", "body", "words"),
    [
        (b"HTTP/1.1 404 Not Found\r\n\r\n", b'{"error": {"message": "no such model"}}', "no such model"),
        (b"HTTP/1.1 502 Bad Gateway\r\n\r\n", b"<html>", "502"),
        (PLAIN, b'data: {"error": {"message": "overloaded"}}\n\n', "overloaded"),
        (PLAIN, b"data: [DONE]\n\n", "no tokens"),
        (PLAIN, b"data: {nonsense\n\n", ""),
        (b"", b"", "without an answer"),
    ],
)
def test_what_went_wrong_is_said_in_the_servers_words(head: bytes, body: bytes, words: str) -> None:
    found = outcome((1.0, body), head=head)
    assert not found.ok and words in (found.failure or "")
    assert not found.meets(1e9, 1e9)


def test_an_answer_that_breaks_off_has_failed_although_it_had_tokens() -> None:
    recording = Recording(0.0, [(0.0, PLAIN), (1.0, event("a"))], failure="the connection broke: reset")
    assert not read(recording, prompt_tokens=1, asked_tokens=2).ok


@pytest.mark.parametrize(
    "end",
    [
        event("b", "length"),
        event("", "stop"),
        b"data: [DONE]\n\n",
        b"data: [DONE]",
        b"data:[DONE]\n",
        event("b", "length") + usage(5, 2) + b"data: [DONE]\n\n",
    ],
)
def test_a_finish_reason_or_done_is_an_end_and_nothing_else_is(end: bytes) -> None:
    assert outcome((1.0, event("a")), (2.0, end)).ok
    for other in (b"", b": bye\n\n", event("b"), usage(5, 2), event("[DONE]"), end[:5]):
        found = outcome((1.0, event("a")), (2.0, other))
        assert not found.ok and "broke off" in (found.failure or "")


def figures(outcomes: list[Outcome]) -> Result:
    work = closed("batch", "batch", requests=len(outcomes), at_once=2, prompt="5", output="3", seed=0)
    return result(
        "s", work, 0, outcomes, Objectives(ttft=0.5, tpot=0.25),
        processor=(3.0, 0.1, 2.0), late=0.0, wall=4.0, known=True, memory=None,
    )  # fmt: skip


HAND = [
    Outcome(10.0, (10.2, 10.3, 10.6), 3, 5, 3),
    Outcome(10.0, (10.6, 10.8, 11.4, 12.0), 4, 7, 4),
    Outcome(10.5, (), 3, 5, 0, failure="refused"),
]


def test_the_definitions_are_those_of_vllm_bench_serve() -> None:
    """Worked by hand after vLLM's benchmarks/serve.py: TPOT = (latency − TTFT) / (output tokens − 1) of each
    request, ITL every gap of every request, throughput from the first request to the last token, failed
    requests in neither."""
    found = figures(HAND)
    assert found.ttft.mean == pytest.approx((0.2 + 0.6) / 2)
    assert found.tpot.mean == pytest.approx((0.4 / 2 + 1.4 / 3) / 2)
    assert found.itl.mean == pytest.approx((0.1 + 0.3 + 0.2 + 0.6 + 0.6) / 5)
    assert found.itl.count == 5
    assert found.duration == pytest.approx(2.0)
    assert found.output_rate == pytest.approx(7 / 2.0)
    assert found.total_rate == pytest.approx((7 + 12) / 2.0)
    assert found.request_rate == pytest.approx(2 / 2.0)


def test_a_failed_request_did_not_meet_its_objectives() -> None:
    found = figures(HAND).attainment
    assert (found.met, found.share, found.rate) == (1, pytest.approx(1 / 3), pytest.approx(0.5))


def test_what_neither_client_nor_server_took_was_taken_by_others() -> None:
    found = figures(HAND)
    assert found.other_cores == pytest.approx((3.0 - 0.1 - 2.0) / 4.0)
    assert found.client.cores == pytest.approx(0.025)
    assert found.client.event_seconds == pytest.approx(0.1 / 7)
