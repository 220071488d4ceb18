"""Streams: the same answers in chunks, never half a character, never what is taken back."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence

import httpx
import pytest

from cluster.config import GatewayConfig
from cluster.openai import CompletionBody
from cluster.openai_answers import Choice
from cluster.resume import Reconnection, position
from cluster.stream_order import Piece
from tests.cluster.asking import CHAT, HELLO, TEXT, ask, events, on_cluster, streamed_text
from tests.cluster.doubles import SCRIPT, ScriptedRunner
from tests.cluster.local_cluster import LocalCluster


def test_a_stream_has_the_text_of_the_whole_answer() -> None:
    chunks = events(ask(CHAT, {"messages": HELLO, "stream": True}))
    assert streamed_text(chunks) == SCRIPT


def test_a_chat_stream_begins_with_the_role_and_ends_with_the_reason() -> None:
    chunks = events(ask(CHAT, {"messages": HELLO, "stream": True, "max_tokens": 2}))
    choices = [chunk["choices"][0] for chunk in chunks]
    assert choices[0]["delta"] == {"role": "assistant", "content": ""}
    assert (choices[-1]["delta"], choices[-1]["finish_reason"]) == ({}, "length")
    assert all(choice["finish_reason"] is None for choice in choices[:-1])


def test_no_chunk_has_half_a_character() -> None:
    chunks = events(ask(CHAT, {"messages": HELLO, "stream": True}))
    assert all("\ufffd" not in choice["delta"].get("content", "") for c in chunks for choice in c["choices"])


def test_no_chunk_shows_what_becomes_a_stop_string() -> None:
    chunks = events(ask(CHAT, {"messages": HELLO, "stream": True, "stop": "STOP"}))
    assert streamed_text(chunks) == SCRIPT.partition("STOP")[0]


def test_all_chunks_are_of_one_answer() -> None:
    chunks = events(ask(TEXT, {"prompt": "hi", "stream": True, "stream_options": {"include_usage": True}}))
    assert len({(chunk["id"], chunk["created"], chunk["model"], chunk["object"]) for chunk in chunks}) == 1


def test_choices_of_a_stream_are_told_apart_by_index() -> None:
    chunks = events(ask(CHAT, {"messages": HELLO, "stream": True, "n": 3}, blocks=256))
    assert [streamed_text(chunks, index) for index in range(3)] == [SCRIPT, SCRIPT[1:], SCRIPT[2:]]


def test_places_are_told_to_who_asks_for_them_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each costs as much as there are choices."""
    asked: list[int] = []

    def counting(choices: Sequence[Choice]) -> str:
        asked.append(len(choices))
        return position(choices)

    monkeypatch.setattr("cluster.generation.position", counting)
    body = {"messages": HELLO, "stream": True, "n": 3, "max_tokens": 4}
    assert events(ask(CHAT, body)) and asked == []
    with_places = events(ask(CHAT, body, {"accept": "text/event-stream"}))
    assert set(asked) == {3} and len(asked) >= len(with_places)


def test_a_step_walks_over_no_token_of_before() -> None:
    class Unwalked(list[tuple[int, Piece]]):
        def __iter__(self) -> Iterator[tuple[int, Piece]]:
            raise AssertionError("all tokens are walked over")

    async def run(cluster: LocalCluster, client: httpx.AsyncClient) -> None:
        body = CompletionBody.model_validate({"model": "tiny", "prompt": "hi", "max_tokens": 20})
        for asked in (Reconnection(named=True), Reconnection()):
            job = await cluster.service.begin(body, "walked", None, asked)
            job._tokens = Unwalked()
            reader, given = job.reader(), 0
            while update := await reader.next():
                given += sum(len(pieces) for _, pieces in update)
            assert given == 20
            assert len(job._tokens) == (20 if job.kept else 0)
            reader.close()

    on_cluster(run)


def test_usage_comes_last_and_is_null_before() -> None:
    chunks = events(ask(CHAT, {"messages": HELLO, "stream": True, "stream_options": {"include_usage": True}}))
    assert (chunks[-1]["choices"], chunks[-1]["usage"]["completion_tokens"]) == ([], len(SCRIPT.encode()) + 1)
    assert all(chunk["usage"] is None for chunk in chunks[:-1])


def test_usage_may_run_along() -> None:
    options = {"include_usage": True, "continuous_usage_stats": True}
    chunks = events(ask(TEXT, {"prompt": "hi", "stream": True, "stream_options": options}))
    counts = [chunk["usage"]["completion_tokens"] for chunk in chunks]
    assert counts == sorted(counts)
    assert counts[0] > 0


def test_without_include_usage_no_chunk_has_any() -> None:
    assert all("usage" not in chunk for chunk in events(ask(TEXT, {"prompt": "hi", "stream": True})))


def test_every_event_begins_with_its_data_for_clients_that_know_no_more() -> None:
    """`vllm bench serve` takes what stands before an empty line, without "data: ", for JSON."""
    response = ask(TEXT, {"prompt": "hi", "stream": True}, {"x-request-id": "bench-0"})
    *chunks, done, nothing = response.text.split("\n\n")
    assert all(json.loads(chunk.removeprefix("data: "))["choices"] for chunk in chunks)
    assert (done, nothing) == ("data: [DONE]", "")


@pytest.mark.parametrize(
    "headers",
    [{"accept": "text/event-stream"}, {"x-request-id": "mine", "x-tandem-resumable": "1"}],
    ids=["reads events", "may come back"],
)
def test_every_event_carries_the_position_of_every_choice(headers: dict[str, str]) -> None:
    response = ask(TEXT, {"prompt": "hi", "stream": True, "n": 2, "max_tokens": 3}, headers)
    ids = [line for line in response.text.splitlines() if line.startswith("id: ")]
    assert ids[-1].endswith(":3.,3.")


@pytest.mark.parametrize("path", [TEXT, CHAT])
@pytest.mark.parametrize("limit", [1, 2, 5, 30])
def test_a_position_counts_the_text_that_came_with_it(path: str, limit: int) -> None:
    """Each token is one letter: who stops reading after any event has as many as its id says."""
    body = {"prompt": "hi"} if path == TEXT else {"messages": HELLO}
    response = ask(path, {**body, "stream": True, "max_tokens": limit}, {"accept": "text/event-stream"})
    text, where = "", ""
    for line in response.text.splitlines():
        if line.startswith("id: "):
            where = line.rpartition(":")[2]
        elif line.startswith("data: {"):
            (choice,) = json.loads(line.removeprefix("data: "))["choices"]
            text += choice.get("text") or choice.get("delta", {}).get("content") or ""
            ended = choice["finish_reason"] is not None
            assert where == f"{len(text)}{'.' if ended else ''}"
    assert text == SCRIPT[:limit]


def test_a_stream_says_what_it_is() -> None:
    headers = ask(TEXT, {"prompt": "hi", "stream": True}).headers
    assert headers["content-type"] == "text/event-stream; charset=utf-8"
    assert (headers["cache-control"], headers["x-accel-buffering"]) == ("no-cache", "no")


def test_a_silent_stream_sends_comments() -> None:
    runner = ScriptedRunner()
    runner.gate.clear()

    async def run(cluster: LocalCluster, client: httpx.AsyncClient) -> None:
        pings = 0
        async with cluster.serve() as url, httpx.AsyncClient(base_url=url, trust_env=False) as real:
            body = {"model": "tiny", "prompt": "hi", "stream": True, "max_tokens": 3}
            async with real.stream("POST", TEXT, json=body) as response:
                async for line in response.aiter_lines():
                    pings += line == ": ping"
                    if pings == 2:
                        runner.gate.set()
        assert pings >= 2

    on_cluster(run, make_runner=lambda: runner, config=GatewayConfig(keepalive=0.02))
