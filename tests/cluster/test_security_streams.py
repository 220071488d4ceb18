"""How long an answer may take in all: its stream ends with the reason, and nothing of it is left."""

from __future__ import annotations

import asyncio
import json
import time
from typing import Any

import httpx
import pytest
from starlette.types import Message, Scope

from cluster.config import GatewayConfig
from engine.plan import StepPlan, StepResult
from tests.cluster.asking import CHAT, HELLO, TEXT, on_cluster
from tests.cluster.doubles import ScriptedRunner, until
from tests.cluster.local_cluster import LocalCluster

LIMIT = 0.4
STEP = 0.01
TOKENS = 190
BRIEF = GatewayConfig(stream_timeout=LIMIT)
"""190 tokens take 1.9 s at least, of which 0.4 s are given."""


class SlowRunner(ScriptedRunner):
    def run(self, plan: StepPlan) -> StepResult:
        time.sleep(STEP)
        return super().run(plan)


def slow() -> SlowRunner:
    return SlowRunner("x" * 2 * TOKENS)


def body(**fields: Any) -> dict[str, Any]:
    return {"model": "tiny", "max_tokens": TOKENS, "stream": True, **fields}


def lines_of(text: str) -> list[str]:
    return [line.removeprefix("data: ") for line in text.splitlines() if line.startswith("data: ")]


def over_in_time(text: str) -> int:
    """Looks at a stream that was ended; gives how many events of tokens came before."""
    *chunks, error, done = lines_of(text)
    assert done == "[DONE]"
    told = json.loads(error)["error"]
    assert told["code"] == "timeout"
    assert "longer than it may" in told["message"]
    assert not any("error" in json.loads(chunk) for chunk in chunks)
    assert all(choice["finish_reason"] is None for one in chunks for choice in json.loads(one)["choices"])
    return len(chunks)


async def freed(cluster: LocalCluster) -> None:
    """Now, and not only when it would have ended by itself: blocks, the run, the place among the tenant's."""
    instance = cluster.instances["instance-0"]
    await until(lambda: instance.cancelled)
    assert instance.cancelled == instance.started
    await cluster.idle()
    assert instance.core.pool.free + instance.core.pool.cached == instance.core.pool.total


@pytest.mark.parametrize(("path", "asked"), [(TEXT, {"prompt": "hi"}), (CHAT, {"messages": HELLO})])
def test_a_stream_that_takes_longer_than_it_may_ends_with_the_reason(
    path: str, asked: dict[str, Any]
) -> None:
    """Over a socket, as a client sees it."""

    async def run(cluster: LocalCluster, client: httpx.AsyncClient) -> None:
        async with cluster.serve() as url, httpx.AsyncClient(trust_env=False, timeout=20) as outside:
            begun = time.monotonic()
            answer = await outside.post(f"{url}{path}", json=body(**asked))
            took = time.monotonic() - begun
            assert answer.status_code == 200
            assert 2 <= over_in_time(answer.text) < TOKENS
            assert took >= LIMIT
            await freed(cluster)
            metrics = (await outside.get(f"{url}/metrics")).text
        assert 'tandem_requests_total{code="408",model="tiny",tenant="default"} 1.0' in metrics

    on_cluster(run, config=BRIEF, make_runner=slow, max_length=250)


@pytest.mark.parametrize(("asked", "allowed", "least"), [("0.1", 60.0, 0.1), ("60", LIMIT, LIMIT)])
def test_a_client_may_ask_for_less_and_not_for_more(asked: str, allowed: float, least: float) -> None:
    """The longer of the two is time enough for all tokens: that the answer was cut is the shorter's doing."""

    async def run(cluster: LocalCluster, client: httpx.AsyncClient) -> None:
        begun = time.monotonic()
        headers = {"x-request-timeout-seconds": asked}
        answer = await client.post(TEXT, json=body(prompt="hi"), headers=headers)
        assert over_in_time(answer.text) < TOKENS
        assert time.monotonic() - begun >= least

    config = GatewayConfig(stream_timeout=allowed)
    on_cluster(run, config=config, make_runner=slow, max_length=250)


class Reader:
    """A client behind an ASGI server: it sends its request, and takes `pause` seconds to read each piece."""

    def __init__(self, pause: float) -> None:
        self.text = ""
        self._pause = pause
        self._asked = False

    async def ask(self, cluster: LocalCluster) -> None:
        """Until the answer is over."""
        scope: Scope = {
            "type": "http",
            "method": "POST",
            "path": TEXT,
            "query_string": b"",
            "headers": [(b"content-type", b"application/json")],
        }
        await cluster.app(scope, self._receive, self._send)

    async def _receive(self) -> Message:
        if self._asked:
            await asyncio.Event().wait()
        self._asked = True
        return {"type": "http.request", "body": json.dumps(body(prompt="hi")).encode()}

    async def _send(self, message: Message) -> None:
        await asyncio.sleep(self._pause)
        self.text += message.get("body", b"").decode()


def test_the_reason_reaches_a_client_that_reads_slowly() -> None:
    """When the time is over something is on its way to it still: the reason comes after that."""

    async def run(cluster: LocalCluster, client: httpx.AsyncClient) -> None:
        reader = Reader(0.15)
        await reader.ask(cluster)
        over_in_time(reader.text)
        await freed(cluster)

    on_cluster(run, config=BRIEF, make_runner=slow, max_length=250)


def test_a_client_that_does_not_read_at_all_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cluster.generation.LAST_WORDS", 0.1)

    async def run(cluster: LocalCluster, client: httpx.AsyncClient) -> None:
        reader = Reader(pause=60)
        await asyncio.wait_for(reader.ask(cluster), 10 * LIMIT)
        assert reader.text == ""
        await freed(cluster)

    on_cluster(run, config=BRIEF, make_runner=slow, max_length=250)
