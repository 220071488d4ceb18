"""The same schemas and probes while requests move between the decode instances of a real cluster, in
mid-stream."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, TypeVar

import pytest
import requests
from llm_comply.tests.openai_chat import OPENAI_CHAT_TESTS
from schemathesis import GenerationMode

from cluster import control_pb2 as pb
from cluster.control_client import ControlClient
from engine.errors import TandemError
from tests.cluster.conforming import (
    BEYOND_TEXT,
    HELLO,
    chunks,
    complies,
    openai_schemas,
    valid,
    valid_completion,
    withstands,
)
from tests.cluster.conftest import Cluster

T = TypeVar("T")
TRIES = 12
"""Answers that are asked for until one was moved: some end after a token or two."""
LONG: dict[str, Any] = {"type": "string", "minLength": 120}
PLACE: dict[str, Any] = {"type": "object", "properties": {"city": LONG}, "required": ["city"]}
CHATS: dict[str, dict[str, Any]] = {
    "plain": {},
    "two choices": {"n": 2},
    "log-probabilities": {"logprobs": True, "top_logprobs": 3},
    "stop string": {"stop": "zq"},
    "call": {
        "tools": [{"type": "function", "function": {"name": "look", "parameters": PLACE}}],
        "tool_choice": "required",
    },
    "schema": {"response_format": {"type": "json_schema", "json_schema": {"name": "place", "schema": PLACE}}},
}
COMPLETIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "two choices": {"n": 2},
    "log-probabilities": {"logprobs": 3},
    "echo": {"echo": True},
}
ENDLESS: dict[str, Any] = {
    "max_tokens": 600,
    "ignore_eos": True,
    "stop": None,
    "response_format": None,
    "structured_outputs": None,
}
ASKED: dict[str, dict[str, Any]] = {
    "POST /v1/completions": {**ENDLESS, "prompt": "hi"},
    "POST /v1/chat/completions": {**ENDLESS, "messages": HELLO, "tools": None, "tool_choice": None},
}
"""Most of what is made up is refused, or ends at once, without these."""
NEVER_ASKED = {"chat-reasoning-summary", "chat-error-handling", *BEYOND_TEXT}
"""Probes that generate nothing: models of other names, and what is to be refused."""
PROBES = [case for case in OPENAI_CHAT_TESTS if case.id not in NEVER_ASKED]


ALWAYS = {"call"}
"""What is asked without --full too."""


@pytest.fixture(autouse=True)
def _some_only(request: pytest.FixtureRequest, full: bool) -> None:
    if not full and not ALWAYS & set({request.node.callspec.id}):
        pytest.skip("one of many kinds: run with --full")


@pytest.fixture(scope="module")
def spec() -> dict[str, Any]:
    return openai_schemas()


@contextmanager
def moving(cluster: Cluster) -> Iterator[None]:
    """Whatever decodes is moved to another decode instance, again and again."""
    over = threading.Event()
    names = [one.name for one in cluster.ready("decode")]

    def move() -> None:
        with ControlClient(f"127.0.0.1:{cluster.config.control.port}", "test", timeout=10.0) as control:
            while not over.wait(0.005):
                for one in control.requests():
                    if one.phase == "decode":
                        with suppress(TandemError):  # it may have ended meanwhile
                            control.migrate(one.id, next(name for name in names if name != one.instance))

    thread = threading.Thread(target=move)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join(30)
    assert not thread.is_alive()


def committed(cluster: Cluster, name: str = "") -> list[pb.Migration]:
    return [one for one in cluster.control.migrations(name) if one.outcome == "committed"]


def until_moved(cluster: Cluster, name: str, ask: Callable[[str], T]) -> T:
    """What is answered when the request was moved meanwhile."""
    for number in range(TRIES):
        request = f"{name}-{number}"
        answer = ask(request)
        if committed(cluster, request):
            return answer
    raise AssertionError(f"none of {TRIES} requests was moved")


def moved_and_not(cluster: Cluster, what: str, ask: Callable[[str], Any]) -> None:
    """The answer is the same, moved or not."""
    name = re.sub(r"\W+", "-", what)
    still = ask(f"{name}-still")
    assert not committed(cluster, f"{name}-still")
    with moving(cluster):
        assert until_moved(cluster, name, ask) == still


def told(choices: list[dict[str, Any]]) -> str:
    """All that clients read in whole answers but the ids of calls, which every request has its own of."""
    return json.dumps(
        [one | {"message": _without_ids(one["message"])} if "message" in one else one for one in choices]
    )


def _without_ids(message: dict[str, Any]) -> dict[str, Any]:
    calls = message.get("tool_calls") or []
    return message | {"tool_calls": [call["function"] for call in calls]}


def joined(stream: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """What the parts of a stream are when put together, however they were cut."""
    found: dict[int, dict[str, Any]] = {}
    for choice in (one for chunk in stream for one in chunk["choices"]):
        whole = found.setdefault(choice["index"], {"text": "", "calls": "", "scores": [], "finish": None})
        delta = choice.get("delta", {})
        whole["text"] += choice.get("text", delta.get("content")) or ""
        whole["calls"] += "".join(call["function"]["arguments"] for call in delta.get("tool_calls") or [])
        scores = choice["logprobs"] or {}
        whole["scores"] += scores.get("content") or scores.get("token_logprobs") or []
        whole["finish"] = choice["finish_reason"] or whole["finish"]
    return [found[number] for number in sorted(found)]


@pytest.mark.parametrize("kind", CHATS)
def test_chats_are_valid_and_the_same(cluster: Cluster, spec: dict[str, Any], kind: str) -> None:
    url = f"{cluster.url}/v1/chat/completions"
    body = {"model": "tiny", "messages": HELLO, "max_tokens": 400, "seed": 3, **CHATS[kind]}
    options = {"stream": True, "stream_options": {"include_usage": True}}

    def whole(name: str) -> Any:
        answer = requests.post(url, json=body, headers={"x-request-id": name}, timeout=60).json()
        valid(spec, "CreateChatCompletionResponse", answer)
        return told(answer["choices"]), answer["usage"]["completion_tokens"]

    def stream(name: str) -> Any:
        parts = chunks(cluster.url, "chat/completions", body | options, **{"x-request-id": name})
        for part in parts:
            valid(spec, "CreateChatCompletionStreamResponse", part)
        return joined(parts), parts[-1]["usage"]["completion_tokens"]

    moved_and_not(cluster, f"chat {kind}", whole)
    moved_and_not(cluster, f"chat stream {kind}", stream)


@pytest.mark.parametrize("kind", COMPLETIONS)
def test_completions_are_valid_and_the_same(cluster: Cluster, spec: dict[str, Any], kind: str) -> None:
    body = {"model": "tiny", "prompt": "hi", "max_tokens": 400, "seed": 3, **COMPLETIONS[kind]}

    def whole(name: str) -> Any:
        url, headers = f"{cluster.url}/v1/completions", {"x-request-id": name}
        answer = requests.post(url, json=body, headers=headers, timeout=60).json()
        valid(spec, "CreateCompletionResponse", answer)
        return told(answer["choices"]), answer["usage"]["completion_tokens"]

    def stream(name: str) -> Any:
        parts = chunks(cluster.url, "completions", body | {"stream": True}, **{"x-request-id": name})
        for part in parts:
            valid_completion(spec, part)
        return joined(parts)

    moved_and_not(cluster, f"completion {kind}", whole)
    moved_and_not(cluster, f"completion stream {kind}", stream)


# It resolves references by a part of jsonschema that is going away.
@pytest.mark.filterwarnings("ignore:jsonschema.RefResolver:DeprecationWarning")
@pytest.mark.parametrize("case", PROBES, ids=lambda case: case.id)
def test_llm_comply(cluster: Cluster, case: Any) -> None:
    def ask(name: str) -> None:
        complies(cluster.url, case, **{"x-request-id": name})

    with moving(cluster):
        until_moved(cluster, case.id, ask)


@pytest.mark.parametrize("label", ASKED)
def test_schemathesis(cluster: Cluster, full: bool, label: str) -> None:
    before = {one.id for one in committed(cluster)}
    with moving(cluster):
        withstands(cluster.url, label, GenerationMode.POSITIVE, 100 if full else 8, **ASKED[label])
    assert {one.id for one in committed(cluster)} - before
