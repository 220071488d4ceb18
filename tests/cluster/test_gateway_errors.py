"""Refusals and failures: a status, a code and the parameter to change."""

from __future__ import annotations

import asyncio
import re
import threading
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest

from cluster.config import GatewayConfig
from cluster.openai_errors import as_tandem, error_body, error_headers
from engine.errors import Overloaded, TandemError
from model.tokenizer import LONG_TEXT
from tests.cluster.asking import CHAT, HELLO, TEXT, ask, events, on_cluster, refused, streamed_text
from tests.cluster.doubles import EOS, ByteTokenizer, ScriptedRunner, until
from tests.cluster.local_cluster import LocalCluster


@pytest.mark.parametrize("path", [TEXT, CHAT])
def test_an_unknown_model_is_not_found(path: str) -> None:
    body = {"model": "gpt-9", "prompt": "hi", "messages": HELLO}
    refused(ask(path, body), 404, "model_not_found", "model")


def test_a_prompt_beyond_the_context_is_refused() -> None:
    refused(ask(TEXT, {"prompt": "x" * 200}), 400, "context_length_exceeded", "prompt")


def test_messages_beyond_the_context_are_refused() -> None:
    messages = [{"role": "user", "content": "x" * 200}]
    refused(ask(CHAT, {"messages": messages}), 400, "context_length_exceeded", "messages")


class LoggingTokenizer(ByteTokenizer):
    """Writes down what it tokenises, and whether in the thread that made it."""

    def __init__(self) -> None:
        super().__init__()
        self.log: list[tuple[int, bool]] = []
        self._thread = threading.get_ident()

    def encode(self, text: str, *, parse_special: bool = True, add_bos: bool = True) -> list[int]:
        self.log.append((len(text), threading.get_ident() == self._thread))
        return super().encode(text, parse_special=parse_special, add_bos=add_bos)


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        (TEXT, {"prompt": "x" * LONG_TEXT}, "prompt"),
        (TEXT, {"prompt": ["hi", "é" * LONG_TEXT], "stream": True}, "prompt"),
        (CHAT, {"messages": [{"role": "user", "content": "x" * LONG_TEXT}]}, "messages"),
        ("/tokenize", {"prompt": "x" * LONG_TEXT}, "prompt"),
        ("/tokenize", {"messages": [{"role": "user", "content": "x" * LONG_TEXT}]}, "messages"),
    ],
)
def test_what_cannot_fit_the_context_is_refused_without_tokenising(
    path: str, body: dict[str, Any], param: str
) -> None:
    tokenizer = LoggingTokenizer()
    response = ask(path, body, tokenizer=tokenizer)
    refused(response, 400, "context_length_exceeded", param)
    assert re.search(
        r"has \d+ tokens or more and the context ends at 200: shorten it to 199 or fewer", response.text
    )
    assert tokenizer.log == []


def test_a_long_text_of_few_tokens_is_tokenised_in_a_thread() -> None:
    class Few(LoggingTokenizer):
        def encode(self, text: str, *, parse_special: bool = True, add_bos: bool = True) -> list[int]:
            return super().encode(text)[:10]

        def least_tokens(self, text: str) -> int:
            return 10

    tokenizer = Few()
    assert ask(TEXT, {"prompt": "x" * LONG_TEXT, "max_tokens": 1}, tokenizer=tokenizer).status_code == 200
    assert tokenizer.log == [(LONG_TEXT, False)]


def test_many_short_prompts_are_tokenised_in_a_thread_too() -> None:
    tokenizer = LoggingTokenizer()
    body = {"prompt": ["x" * 190] * (LONG_TEXT // 190 + 1), "max_tokens": 1}
    response = ask(TEXT, body, tokenizer=tokenizer, blocks=2048)
    assert response.status_code == 200, response.text
    assert [choice["finish_reason"] for choice in response.json()["choices"]] == ["length"] * 22
    assert tokenizer.log == [(190, False)] * 22
    ask(TEXT, {"prompt": ["x", "y"], "max_tokens": 1}, tokenizer=tokenizer)
    assert tokenizer.log[22:] == [(1, True)] * 2


def test_more_tokens_than_the_context_has_left_are_refused() -> None:
    refused(ask(TEXT, {"prompt": "hi", "max_tokens": 199}), 400, "context_length_exceeded", "prompt")


def test_what_never_fits_the_kv_cache_is_refused_at_the_door() -> None:
    response = ask(TEXT, {"prompt": "hi", "n": 8, "max_tokens": 100}, blocks=64, block_size=4)
    refused(response, 400, "context_length_exceeded", "max_tokens")


def test_a_token_beyond_the_vocabulary_is_refused() -> None:
    refused(ask(TEXT, {"prompt": [5, EOS + 1]}), 400, "invalid_value", "prompt")


def test_an_empty_prompt_is_refused() -> None:
    refused(ask(TEXT, {"prompt": ""}), 400, "invalid_value", "prompt")


def test_a_refusal_of_a_stream_has_a_status_of_its_own() -> None:
    refused(ask(TEXT, {"prompt": "x" * 200, "stream": True}), 400, "context_length_exceeded", "prompt")


def test_a_body_above_the_limit_is_refused_before_it_is_parsed() -> None:
    response = ask(TEXT, {"prompt": "x" * 2000}, config=GatewayConfig(body_limit=1024))
    refused(response, 413, "request_too_large", None)


def test_a_body_without_a_length_is_bounded_too() -> None:
    async def run(cluster: LocalCluster, client: httpx.AsyncClient) -> None:
        async def endless() -> AsyncIterator[bytes]:
            for _ in range(100):
                yield b" " * 100

        headers = {"content-type": "application/json"}
        refused(await client.post(TEXT, content=endless(), headers=headers), 413, "request_too_large", None)

    on_cluster(run, config=GatewayConfig(body_limit=1024))


FORMAT = '"response_format":{"type":"json_schema","json_schema":{"name":"x","schema":%s}}'
DEMANDED = '"tool_choice":"required","tools":[{"type":"function","function":{"name":"f","parameters":%s}}]'
OFFERED = DEMANDED.replace("required", "auto")


@pytest.mark.parametrize("field", [FORMAT, DEMANDED, OFFERED], ids=["format", "demanded", "offered"])
def test_no_depth_of_a_schema_is_our_fault(field: str) -> None:
    """Between what can be read and what can be written lie some depths, which depend on the caller's own."""
    start = '{"model":"tiny","max_tokens":1,"messages":[{"role":"user","content":"hi"}],'

    async def run(cluster: LocalCluster, client: httpx.AsyncClient) -> None:
        headers = {"content-type": "application/json"}
        for depth in range(850, 1000):
            schema = '{"a":' * depth + "1" + "}" * depth
            answer = await client.post(CHAT, content=f"{start}{field % schema}}}", headers=headers)
            assert answer.status_code in (200, 400), (depth, answer.text)
        assert "nested too deep" in answer.text

    on_cluster(run)


def test_other_content_types_are_refused() -> None:
    async def run(cluster: LocalCluster, client: httpx.AsyncClient) -> None:
        for headers in (
            {"content-type": "text/plain"},
            {},
            {"content-type": "application/x-www-form-urlencoded"},
        ):
            response = await client.post(TEXT, content=b'{"model":"tiny","prompt":"x"}', headers=headers)
            refused(response, 415, "unsupported_media_type", None)

    on_cluster(run)


@pytest.mark.parametrize("path", ["/", "/v1", "/v1/embeddings", "/v1/responses", "/docs", "/v1/models/"])
def test_what_does_not_exist_is_not_found(path: str) -> None:
    async def run(cluster: LocalCluster, client: httpx.AsyncClient) -> None:
        response = await client.get(path)
        assert response.status_code == 404
        assert response.json()["error"]["type"] == "invalid_request_error"

    on_cluster(run)


def test_a_wrong_method_is_not_allowed() -> None:
    async def run(cluster: LocalCluster, client: httpx.AsyncClient) -> None:
        response = await client.get(TEXT)
        refused(response, 405, "method_not_allowed", None)
        assert response.headers["allow"] == "POST"

    on_cluster(run)


def test_an_id_that_is_running_with_another_body_is_a_conflict() -> None:
    runner = ScriptedRunner()
    runner.gate.clear()

    async def run(cluster: LocalCluster, client: httpx.AsyncClient) -> None:
        body = {"model": "tiny", "prompt": "hi", "max_tokens": 2}
        headers = {"x-request-id": "same"}
        first = asyncio.create_task(client.post(TEXT, json=body, headers=headers))
        await until(lambda: cluster.driver.runs)
        other = {**body, "prompt": "ho"}
        refused(await client.post(TEXT, json=other, headers=headers), 409, "conflict", None)
        runner.gate.set()
        assert (await first).status_code == 200

    on_cluster(run, make_runner=lambda: runner)


def test_a_request_that_takes_too_long_times_out() -> None:
    runner = ScriptedRunner()
    runner.gate.clear()

    async def run(cluster: LocalCluster, client: httpx.AsyncClient) -> None:
        headers = {"x-request-timeout-seconds": "0.05"}
        body = {"model": "tiny", "prompt": "hi"}
        refused(await client.post(TEXT, json=body, headers=headers), 408, "timeout", None)
        runner.gate.set()

    on_cluster(run, make_runner=lambda: runner)


def test_a_full_queue_is_answered_503_with_a_time_to_wait() -> None:
    async def run(cluster: LocalCluster, client: httpx.AsyncClient) -> None:
        for instance in cluster.instances.values():
            instance.refusal = Overloaded("256 sequences wait here", param="engine.queue_limit")
        response = await client.post(TEXT, json={"model": "tiny", "prompt": "hi"})
        refused(response, 503, "overloaded", None)
        assert 1 <= int(response.headers["retry-after"]) <= 120
        assert all(instance.started == [] for instance in cluster.instances.values())

    on_cluster(run, instances=2)


def test_a_full_queue_is_tried_elsewhere_first() -> None:
    async def run(cluster: LocalCluster, client: httpx.AsyncClient) -> None:
        cluster.instances["instance-1"].refusal = Overloaded("256 sequences wait here")
        for _ in range(4):
            response = await client.post(TEXT, json={"model": "tiny", "prompt": "hi", "max_tokens": 1})
            assert response.status_code == 200

    on_cluster(run, instances=2)


def test_a_failure_says_nothing_of_the_inside() -> None:
    async def run(cluster: LocalCluster, client: httpx.AsyncClient) -> None:
        def broken(*args: Any) -> Any:
            raise RuntimeError("/secret/path")

        cluster.service.check_model = broken  # type: ignore[method-assign]
        response = await client.post(TEXT, json={"model": "tiny", "prompt": "hi"})
        refused(response, 500, "server_error", None)
        assert "secret" not in response.text

    on_cluster(run)


def test_a_failure_in_mid_stream_is_an_event() -> None:
    async def run(cluster: LocalCluster, client: httpx.AsyncClient) -> None:
        runner = cluster.instances["instance-0"].runner
        assert isinstance(runner, ScriptedRunner)
        draw = runner._draw

        def failing(draws: Any) -> Any:
            if draws is not None and draws.position == 5:
                raise ValueError("cannot be computed")
            return draw(draws)

        runner._draw = failing  # type: ignore[method-assign]
        response = await client.post(TEXT, json={"model": "tiny", "prompt": "hi", "stream": True})
        found = events(response)
        assert streamed_text(found[:-1]) == "Once "
        assert found[-1]["error"]["type"] in ("server_error", "overloaded")

    on_cluster(run)


def test_every_error_maps_to_a_status_with_a_body() -> None:
    pending = [TandemError]
    while pending:
        kind = pending.pop()
        pending += kind.__subclasses__()
        error = as_tandem(kind("what to change"))
        body = error_body(error)["error"]
        assert 400 <= error.status < 600
        assert all(isinstance(body[name], str) and body[name] for name in ("message", "type", "code")), kind
        assert (error.status == 503) <= (
            "retry-after" in error_headers(error) or kind.__name__ == "Unreachable"
        )


def test_a_cluster_that_is_about_to_end_refuses_new_requests_and_finishes_the_old() -> None:
    async def test(cluster: LocalCluster, client: httpx.AsyncClient) -> None:
        runner = cluster.instances["instance-0"].runner
        assert isinstance(runner, ScriptedRunner)
        runner.gate.clear()
        running = asyncio.create_task(client.post(CHAT, json={"model": "tiny", "messages": HELLO}))
        await until(lambda: bool(cluster.driver.runs))
        cluster.draining = cluster.service.facts.status.draining = True
        try:
            answer = await client.post(CHAT, json={"model": "tiny", "messages": HELLO})
            refused(answer, 503, "draining", None)
            assert int(answer.headers["retry-after"]) <= 120
            assert (await client.get("/ready")).status_code == 503
        finally:
            runner.gate.set()
        assert (await running).status_code == 200

    on_cluster(test)
