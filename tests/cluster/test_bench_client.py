"""The load client: it sees a token when it comes, asks for exactly what it was told, and hides no failure."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from random import Random
from typing import Any

import pytest

from cluster.bench.http_client import Endpoint, post
from cluster.bench.load import Loaded, run
from cluster.bench.recording import Recording, read
from cluster.bench.serve import measure
from cluster.bench.target import Target, connect, fresh
from cluster.bench.workload import Objectives, Workload, closed, open_loop
from engine.errors import ConfigError, InvalidKey, Unreachable
from simulator.workload.arrivals import Arrival
from tests.cluster.doubles import until
from tests.cluster.local_cluster import LocalCluster, local_cluster

ANYTHING = Objectives(float("inf"), float("inf"))
BOUND = 30.0

Handler = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@asynccontextmanager
async def raw_server(handler: Handler) -> AsyncIterator[Endpoint]:
    """Whatever `handler` does with a connection."""
    server = await asyncio.start_server(handler, "127.0.0.1", 0)
    async with server:
        yield Endpoint(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}")


async def body_of(reader: asyncio.StreamReader) -> dict[str, Any]:
    head = await reader.readuntil(b"\r\n\r\n")
    length = next(line for line in head.split(b"\r\n") if line.lower().startswith(b"content-length"))
    return dict(json.loads(await reader.readexactly(int(length.partition(b":")[2]))))


def token(text: str, finish: str | None = None) -> bytes:
    return f"data: {json.dumps({'choices': [{'text': text, 'finish_reason': finish}]})}\n\n".encode()


def test_a_token_is_seen_after_it_was_sent_and_before_the_next_one() -> None:
    sent: list[float] = []
    seen = asyncio.Queue[None]()

    async def one_by_one(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await body_of(reader)
        writer.write(b"HTTP/1.1 200 OK\r\n\r\n")
        for number in range(5):
            sent.append(time.perf_counter())
            writer.write(token("x", "length" if number == 4 else None))
            # The next leaves when the client has this one.
            await asyncio.wait_for(seen.get(), BOUND)
        writer.write(b"data: [DONE]\n\n")
        writer.close()

    class Watched(list[tuple[float, bytes]]):
        def append(self, piece: tuple[float, bytes]) -> None:
            super().append(piece)
            seen.put_nowait(None)

    async def ask() -> Recording:
        async with raw_server(one_by_one) as endpoint:
            with pytest.MonkeyPatch.context() as patch:
                watched = "cluster.bench.http_client.Recording"
                patch.setattr(watched, lambda begun: Recording(begun, Watched()))
                return await post(endpoint, endpoint.message("/v1/completions", {}), within=BOUND)

    found = read(asyncio.run(ask()), prompt_tokens=1, asked_tokens=5)
    assert found.ok and len(found.times) == 5
    for number, (left, came) in enumerate(zip(sent, found.times, strict=True)):
        assert left <= came
        if number < 4:
            assert came <= sent[number + 1]


def test_a_server_that_is_not_there_is_a_failure_of_the_request() -> None:
    found = read(
        asyncio.run(post(Endpoint("http://127.0.0.1:9"), b"", within=BOUND)), prompt_tokens=1, asked_tokens=1
    )
    assert "cannot be reached" in (found.failure or "")


def test_a_connection_that_breaks_off_is_a_failure_of_the_request() -> None:
    async def half(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await body_of(reader)
        writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
        writer.write(b"%x\r\n" % 4 + b"data")
        await writer.drain()
        writer.transport.abort()

    async def ask() -> Recording:
        async with raw_server(half) as endpoint:
            return await post(endpoint, endpoint.message("/", {}), within=BOUND)

    assert not read(asyncio.run(ask()), prompt_tokens=1, asked_tokens=1).ok


@pytest.mark.parametrize("chunked", [False, True], ids=["plain", "chunked"])
def test_a_server_that_dies_between_two_tokens_is_a_failure_of_the_request(chunked: bool) -> None:
    """Its system closes the connection as if all had been sent."""

    async def dying(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await body_of(reader)
        writer.write(b"HTTP/1.1 200 OK\r\n" + b"Transfer-Encoding: chunked\r\n" * chunked + b"\r\n")
        for _ in range(2):
            data = token("x")
            writer.write(b"%x\r\n%s\r\n" % (len(data), data) if chunked else data)
        await writer.drain()
        writer.close()

    async def ask() -> Recording:
        async with raw_server(dying) as endpoint:
            return await post(endpoint, endpoint.message("/", {}), within=BOUND)

    found = read(asyncio.run(ask()), prompt_tokens=1, asked_tokens=64)
    assert len(found.times) == 2
    assert found.failure == "the stream broke off after 2 events, without an end"
    assert not found.meets(float("inf"), float("inf"))


def test_a_server_that_never_answers_is_given_up() -> None:
    release = asyncio.Event()

    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await release.wait()
        writer.close()

    async def ask() -> Recording:
        async with raw_server(silent) as endpoint:
            recording = await post(endpoint, endpoint.message("/", {}), within=0.05)
            release.set()
            return recording

    assert "0.05 s" in (read(asyncio.run(ask()), prompt_tokens=1, asked_tokens=1).failure or "")


@pytest.mark.parametrize("url", ["ftp://host", "http://", "http://host:port"])
def test_a_url_that_is_none_is_refused(url: str) -> None:
    with pytest.raises(ConfigError, match="URL"):
        Endpoint(url)


def test_a_url_may_name_the_version_and_a_path() -> None:
    endpoint = Endpoint("http://host:80/models/v1/")
    assert endpoint.message("/v1/completions", {}).startswith(b"POST /models/v1/completions HTTP/1.1\r\n")


def on_target(test: Callable[[LocalCluster, Target], Awaitable[None]], **options: Any) -> None:
    async def main() -> None:
        async with local_cluster(blocks=512, max_length=400, **options) as cluster, cluster.serve() as url:
            await test(cluster, await connect("ours", url))

    asyncio.run(main())


def test_prompts_and_answers_have_exactly_the_lengths_that_were_asked_for() -> None:
    async def test(cluster: LocalCluster, target: Target) -> None:
        work = open_loop(500.0, 1.0, requests=12, prompt="uniform:3:90", output="uniform:1:40", seed=1)
        found = await run(target, work, 0, ANYTHING, within=BOUND)
        assert (found.failed, found.cut, found.errors) == (0, 0, ())
        assert found.prompt_tokens == sum(one.prompt_tokens for one in work.arrivals)
        assert found.output_tokens == sum(one.output_tokens for one in work.arrivals)
        assert found.ttft.count == 12

    on_target(test)


def hits(cluster: LocalCluster) -> int:
    return sum(instance.core.status().prefix_hits for instance in cluster.instances.values())


def test_no_prompt_is_found_in_a_prefix_cache() -> None:
    async def test(cluster: LocalCluster, target: Target) -> None:
        for repetition in range(2):
            work = closed("batch", "batch", requests=8, at_once=2, prompt="64", output="2", seed=0)
            await run(target, work, repetition, ANYTHING, within=BOUND)
        assert hits(cluster) == 0
        same = target.endpoint.message("/v1/completions", target.body(Arrival(0, 64, 2), Random(1)))
        for _ in range(2):
            await target.ask(same, within=BOUND)
        assert hits(cluster) > 0, "the cache would have found a repeated prompt"

    on_target(test)


def test_a_shared_prefix_of_a_trace_is_shared() -> None:
    target = Target("t", Endpoint("http://host"), "m", tuple(range(50)))
    one = target.body(Arrival(0, 700, 1, prefix=(1, 2)), fresh())["prompt"]
    other = target.body(Arrival(0, 900, 1, prefix=(1, 3)), fresh())["prompt"]
    assert one[:512] == other[:512]
    assert one[512:] != other[512:700]


def test_a_server_without_a_tokenizer_gets_words_and_its_own_count_holds() -> None:
    target = Target("t", Endpoint("http://host"), "m")
    assert target.prompts == "words"
    assert len(target.body(Arrival(0, 9, 1), fresh())["prompt"].split()) == 9


def test_a_plain_server_gets_no_field_that_openai_does_not_have() -> None:
    target = Target("t", Endpoint("http://host"), "m", extras=False)
    known = {"model", "prompt", "max_tokens", "temperature", "stream", "stream_options"}
    assert set(target.body(Arrival(0, 9, 1), fresh())) == known


class Ward:
    """A server that answers when it is told to, and knows how many wait."""

    def __init__(self) -> None:
        self.waiting = self.most = self.answered = 0
        self.open = asyncio.Event()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await body_of(reader)
        self.waiting += 1
        self.most = max(self.most, self.waiting)
        await asyncio.wait_for(self.open.wait(), BOUND)
        self.waiting -= 1
        self.answered += 1
        writer.write(b"HTTP/1.1 200 OK\r\n\r\n" + token("x", "length") + b"data: [DONE]\n\n")
        writer.close()


async def guarded(work: Workload, enough: Callable[[Ward], bool]) -> Ward:
    """Runs a workload against a Ward that opens once `enough` holds."""
    ward = Ward()
    async with raw_server(ward.serve) as endpoint:
        going = asyncio.create_task(run(Target("t", endpoint, "m"), work, 0, ANYTHING, within=BOUND))
        await until(lambda: enough(ward))
        ward.open.set()
        assert (await going).failed == 0
    return ward


def test_a_closed_workload_has_never_more_under_way_than_it_may() -> None:
    work = closed("batch", "batch", requests=20, at_once=3, prompt="4", output="1", seed=0)
    ward = asyncio.run(guarded(work, lambda ward: ward.waiting == 3))
    assert (ward.most, ward.answered) == (3, 20)


def test_arrivals_do_not_wait_for_answers() -> None:
    work = open_loop(1000.0, 1.0, requests=20, prompt="4", output="1", seed=0)
    ward = asyncio.run(guarded(work, lambda ward: ward.waiting == 20))
    assert ward.most == 20


def test_servers_take_turns_with_rests_between_and_the_first_changes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def main() -> list[str]:
        ward = Ward()
        ward.open.set()
        async with raw_server(ward.serve) as endpoint:
            servers = [Loaded(Target(name, endpoint, "m"), BOUND) for name in "AB"]
            plans = [
                lambda _, name=name: closed(
                    "batch", name, requests=1, at_once=1, prompt="1", output="1", seed=0
                )
                for name in ("one", "two")
            ]
            found = await measure(
                servers, plans, 2, ANYTHING, begin=lambda title: lambda done, total: None, rest=0.25
            )
        return [f"{result.test} {result.server}" for result in found]

    rests: list[float] = []
    sleep = asyncio.sleep

    async def pause(seconds: float) -> None:
        rests.append(seconds)
        await sleep(0 if seconds == 0.25 else seconds)

    monkeypatch.setattr("cluster.bench.serve.asyncio.sleep", pause)

    assert asyncio.run(main()) == [
        "one A", "one B", "two B", "two A", "one B", "one A", "two A", "two B"
    ]  # fmt: skip
    assert rests.count(0.25) == 7


def test_a_server_that_is_not_there_cannot_be_measured() -> None:
    with pytest.raises(Unreachable, match=r"127\.0\.0\.1:9"):
        asyncio.run(connect("t", "http://127.0.0.1:9"))


def test_a_server_that_wants_a_key_says_so() -> None:
    from cluster.config import GatewayConfig

    async def main() -> None:
        async with local_cluster(config=GatewayConfig(api_keys=("k",))) as cluster, cluster.serve() as url:
            with pytest.raises(InvalidKey, match="--api-key"):
                await connect("t", url)
            assert (await connect("t", url, api_key="k")).prompts == "tokens"

    asyncio.run(main())
