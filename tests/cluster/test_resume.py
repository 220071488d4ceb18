"""Clients that come back: to the same gateway, to another one, too late, or twice at once."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import httpx
import pytest

from cluster.config import GatewayConfig
from cluster.resume import Seen, unseen
from cluster.stream_order import Piece
from tests.cluster.asking import CHAT, HELLO, TEXT, Test, on_cluster, refused
from tests.cluster.doubles import SCRIPT, ScriptedRunner, until
from tests.cluster.local_cluster import LocalCluster, local_gateway

NAMED = {"x-request-id": "mine", "accept": "text/event-stream"}
STAYS = NAMED | {"x-tandem-resumable": "1"}
BODY = {"model": "tiny", "messages": HELLO, "stream": True}


class Stream:
    """An answer as it comes: text by choice, the last event's id, and the reasons to end."""

    def __init__(self) -> None:
        self.texts: dict[int, str] = {}
        self.ends: dict[int, str] = {}
        self.last = ""
        self.roles = 0
        self.usage: dict[str, int] | None = None
        self.error: dict[str, Any] | None = None
        self.calls: list[dict[str, Any]] = []
        self.logprobs: dict[int, list[Any]] = {}

    def line(self, line: str) -> None:
        if line.startswith("id: "):
            self.last = line.removeprefix("id: ")
        if not line.startswith("data: {"):
            return
        body = json.loads(line.removeprefix("data: "))
        self.error = body.get("error")
        self.usage = body.get("usage")
        for choice in body.get("choices", ()):
            delta = choice.get("delta", {})
            self.roles += "role" in delta
            self.logprobs.setdefault(choice["index"], []).extend(
                (choice["logprobs"] or {}).get("content", ())
            )
            self.calls += delta.get("tool_calls", ())
            index = choice["index"]
            text = delta.get("content") or choice.get("text") or ""
            self.texts[index] = self.texts.get(index, "") + text
            if choice["finish_reason"]:
                assert index not in self.ends, "a choice ends once"
                self.ends[index] = choice["finish_reason"]

    async def read(
        self, response: httpx.Response, enough: Callable[[Stream], bool] = lambda _: False
    ) -> None:
        """Until the end, or until there is enough."""
        assert response.status_code == 200, await response.aread()
        async for line in response.aiter_lines():
            self.line(line)
            if not line and enough(self):
                return


@asynccontextmanager
async def opened(
    client: httpx.AsyncClient, body: dict[str, Any], headers: dict[str, str], path: str = CHAT
) -> AsyncIterator[httpx.Response]:
    async with client.stream("POST", path, json=body, headers=headers) as response:
        yield response


def with_http(test: Test, **options: Any) -> None:
    """A cluster whose gateway listens, so that a client can leave in the middle of a stream."""

    async def run(cluster: LocalCluster, _: httpx.AsyncClient) -> None:
        async with (
            cluster.serve() as url,
            httpx.AsyncClient(base_url=url, trust_env=False, timeout=30) as client,
        ):
            await test(cluster, client)

    on_cluster(run, **options)


def runner_of(cluster: LocalCluster, name: str = "instance-0") -> ScriptedRunner:
    runner = cluster.instances[name].runner
    assert isinstance(runner, ScriptedRunner)
    return runner


def test_what_a_client_has_is_not_sent_again() -> None:
    piece = Piece(0, 4, 65, "A", finish="stop")
    assert unseen(piece, Seen(4)) is piece
    assert unseen(Piece(0, 3, 65, "A"), Seen(4)) is None
    assert unseen(piece, Seen(5, ended=True)) is None
    end = unseen(piece, Seen(5))
    assert end is not None
    assert (end.token, end.text, end.finish) == (None, "", "stop")
    assert unseen(Piece(0, 5, None, "", finish="stop"), Seen(5, ended=True)) is None


@pytest.mark.parametrize("length", [1, 5, 11])
def test_a_client_that_was_cut_off_gets_the_rest_and_nothing_twice(length: int) -> None:
    async def test(cluster: LocalCluster, client: httpx.AsyncClient) -> None:
        runner_of(cluster).permits = permits = threading.Semaphore(length + 3)
        stream = Stream()
        async with opened(client, BODY, STAYS) as response:
            await stream.read(response, lambda seen: len(seen.texts.get(0, "")) >= length)
        permits.release(1000)
        async with opened(client, BODY, STAYS | {"last-event-id": stream.last}) as response:
            await stream.read(response)
        assert stream.texts[0] == SCRIPT
        assert stream.ends == {0: "stop"}
        assert stream.roles == 1
        assert len(cluster.instances["instance-0"].started) == 1

    with_http(test)


def test_two_choices_are_resumed_each_at_its_own_place() -> None:
    async def test(cluster: LocalCluster, client: httpx.AsyncClient) -> None:
        body = BODY | {"n": 2}
        runner_of(cluster).permits = permits = threading.Semaphore(8)
        stream = Stream()
        async with opened(client, body, STAYS) as response:
            await stream.read(response, lambda seen: len(seen.texts.get(1, "")) >= 3)
        permits.release(1000)
        async with opened(client, body, STAYS | {"last-event-id": stream.last}) as response:
            await stream.read(response)
        assert stream.texts == {0: SCRIPT, 1: SCRIPT[1:]}

    with_http(test, blocks=256)


def test_a_repeated_request_reads_along_instead_of_running_twice() -> None:
    async def test(cluster: LocalCluster, client: httpx.AsyncClient) -> None:
        runner_of(cluster).permits = permits = threading.Semaphore(5)
        first, second = Stream(), Stream()
        async with opened(client, BODY, NAMED) as one, opened(client, BODY, NAMED) as two:
            permits.release(1000)
            await asyncio.gather(first.read(one), second.read(two))
        assert first.texts == second.texts == {0: SCRIPT}
        assert len(cluster.instances["instance-0"].started) == 1

    with_http(test)


def test_another_body_under_a_name_that_runs_is_a_conflict() -> None:
    async def test(cluster: LocalCluster, client: httpx.AsyncClient) -> None:
        runner_of(cluster).permits = permits = threading.Semaphore(5)
        async with opened(client, BODY, NAMED):
            refused(await client.post(CHAT, json=BODY | {"seed": 5}, headers=NAMED), 409, "conflict", None)
            permits.release(1000)

    with_http(test)


def test_without_the_wish_to_return_a_client_that_leaves_ends_its_request() -> None:
    async def test(cluster: LocalCluster, client: httpx.AsyncClient) -> None:
        runner_of(cluster).permits = permits = threading.Semaphore(5)
        stream = Stream()
        async with opened(client, BODY, NAMED) as response:
            await stream.read(response, lambda seen: len(seen.texts.get(0, "")) >= 2)
        await until(lambda: not cluster.driver.runs)
        permits.release(1000)

    with_http(test)


def test_a_request_that_nobody_comes_back_for_ends_with_its_lease() -> None:
    async def test(cluster: LocalCluster, client: httpx.AsyncClient) -> None:
        runner_of(cluster).permits = permits = threading.Semaphore(5)
        stream = Stream()
        async with opened(client, BODY, STAYS) as response:
            await stream.read(response, lambda seen: len(seen.texts.get(0, "")) >= 2)
        await until(lambda: not cluster.driver.runs)
        permits.release(1000)

    with_http(test, config=GatewayConfig(resume_lease=0.05))


def test_a_request_that_has_ended_runs_again_and_only_the_rest_is_sent() -> None:
    async def test(cluster: LocalCluster, client: httpx.AsyncClient) -> None:
        whole = Stream()
        async with opened(client, BODY, NAMED) as response:
            await whole.read(response)
        rest = Stream()
        at = whole.last.rpartition(":")[0] + ":12"
        async with opened(client, BODY, NAMED | {"last-event-id": at}) as response:
            await rest.read(response)
        assert rest.texts[0] == whole.texts[0][12:]
        assert (rest.roles, rest.ends) == (0, {0: "stop"})
        done = Stream()
        async with opened(client, BODY, NAMED | {"last-event-id": whole.last}) as response:
            await done.read(response)
        assert (done.texts, done.ends) == ({}, {})

    with_http(test)


@pytest.mark.parametrize("last", ["chatcmpl-yours:3", "chatcmpl-mine:3,4", "chatcmpl-mine:x", "nonsense"])
def test_a_place_that_was_never_given_is_refused(last: str) -> None:
    async def test(cluster: LocalCluster, client: httpx.AsyncClient) -> None:
        answer = await client.post(CHAT, json=BODY, headers=NAMED | {"last-event-id": last})
        refused(answer, 400, "invalid_value", "last-event-id")

    with_http(test)


@pytest.mark.parametrize("path", [CHAT, TEXT])
def test_another_gateway_takes_a_request_over_and_its_client_gets_the_rest(path: str) -> None:
    async def test(cluster: LocalCluster, client: httpx.AsyncClient) -> None:
        asked = {"prompt": "hello", **BODY} if path == TEXT else BODY
        body = {key: value for key, value in asked.items() if path == CHAT or key != "messages"}
        one = cluster.instances["instance-0"]
        runner_of(cluster).permits = permits = threading.Semaphore(12)
        stream = Stream()
        async with local_gateway(cluster) as second:
            async with opened(client, body, STAYS, path) as response:
                await stream.read(response, lambda seen: len(seen.texts.get(0, "")) >= 4)
            await until(lambda: runner_of(cluster).steps == 12)
            asked, take = asyncio.Event(), one.take

            async def taken(name: str, digest: str) -> bytes:
                asked.set()
                return await take(name, digest)

            one.take = taken  # type: ignore[method-assign]

            async def back() -> None:
                async with (
                    second.client() as other,
                    opened(other, body, STAYS | {"last-event-id": stream.last}, path) as response,
                ):
                    await stream.read(response)

            coming = asyncio.create_task(back())
            # The instance answers between two steps, so it must go on, but not to the end before it is asked.
            await asked.wait()
            permits.release(1000)
            await coming
        assert stream.texts[0] == SCRIPT
        assert stream.ends == {0: "stop"}
        assert len(one.started) == 2
        await until(lambda: not cluster.driver.runs)

    with_http(test)


def test_the_client_of_the_gateway_that_lost_a_request_is_told() -> None:
    async def test(cluster: LocalCluster, client: httpx.AsyncClient) -> None:
        runner_of(cluster).permits = permits = threading.Semaphore(12)
        first, second = Stream(), Stream()
        begun = asyncio.Event()

        def seen(stream: Stream) -> bool:
            if len(stream.texts.get(0, "")) >= 4:
                begun.set()
            return False

        async with local_gateway(cluster) as other, opened(client, BODY, STAYS) as response:
            reading = asyncio.create_task(first.read(response, seen))
            await begun.wait()
            async with other.client() as reader:
                asking = asyncio.create_task(_read(reader, second))
                # The instance answers between two steps, so it must go on, but not to the end.
                await until(lambda: permits.release() or first.error is not None)
                permits.release(1000)
                await asyncio.gather(asking, reading)
        assert first.error is not None
        assert first.error["code"] == "conflict"
        assert second.texts[0] == "x" * 150

    with_http(test, make_runner=lambda: ScriptedRunner("x" * 150))


async def _read(client: httpx.AsyncClient, stream: Stream) -> None:
    async with opened(client, BODY, STAYS) as response:
        await stream.read(response)


def test_where_the_instance_died_too_it_runs_again_from_the_body() -> None:
    async def test(cluster: LocalCluster, client: httpx.AsyncClient) -> None:
        for name in cluster.instances:
            runner_of(cluster, name).permits = threading.Semaphore(12)
        stream = Stream()
        async with local_gateway(cluster) as second:
            async with opened(client, BODY, STAYS) as response:
                await stream.read(response, lambda seen: len(seen.texts.get(0, "")) >= 4)
            holder = next(one for one in cluster.instances.values() if one.started)
            for name in cluster.instances:
                permits = runner_of(cluster, name).permits
                assert permits is not None
                permits.release(1000)
            await holder.kill()
            async with (
                second.client() as other,
                opened(other, BODY, STAYS | {"last-event-id": stream.last}) as response,
            ):
                await stream.read(response)
        assert stream.texts[0] == SCRIPT
        await cluster.service.driver.close()

    with_http(test, instances=2)


CALLS = 'Well. <tool_call>\n{"name": "look", "arguments": {"at": "€"}}\n</tool_call>\n'


@pytest.mark.parametrize("length", [3, 9, 40, len(CALLS.encode()) - 1])
def test_a_call_is_told_once_to_who_was_cut_off_in_the_middle_of_it(length: int) -> None:
    async def test(cluster: LocalCluster, client: httpx.AsyncClient) -> None:
        tool = {"type": "function", "function": {"name": "look"}}
        body = BODY | {"tools": [tool]}
        whole, stream = Stream(), Stream()
        async with opened(client, body, NAMED) as response:
            await whole.read(response)
        at = f"{whole.last.rpartition(':')[0]}:{length}"
        async with opened(client, body, NAMED | {"last-event-id": at}) as response:
            await stream.read(response)
        assert whole.texts == {0: "Well. "} and whole.ends == stream.ends == {0: "tool_calls"}
        assert [call["function"]["name"] for call in whole.calls] == ["look"]
        assert stream.calls == (whole.calls if length < len(CALLS.encode()) - 1 else [])
        assert stream.texts.get(0, "") == "Well. "[length:]

    with_http(test, make_runner=lambda: ScriptedRunner(CALLS))
