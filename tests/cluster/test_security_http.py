"""What a connection may cost before it has shown a key: headers, time, number; and bodies that never come."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from cluster.config import GatewayConfig
from cluster.http_guard import Bounds
from tests.cluster.asking import on_cluster
from tests.cluster.local_cluster import LocalCluster

SMALL = Bounds(headers=2048, arrival=0.3, connections=3)
Talk = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


def talking(*talks: Talk, bounds: Bounds = SMALL, config: GatewayConfig | None = None) -> None:
    """Each over a connection of its own, one after the other, to a gateway that listens."""

    async def run(cluster: LocalCluster, client: object) -> None:
        async with cluster.serve() as url:
            for talk in talks:
                host, _, port = url.removeprefix("http://").rpartition(":")
                reader, writer = await asyncio.open_connection(host, int(port))
                try:
                    async with asyncio.timeout(20):
                        await talk(reader, writer)
                finally:
                    writer.close()

    on_cluster(run, bounds=bounds, config=config)


async def answer(reader: asyncio.StreamReader) -> bytes:
    """All that comes until the server closes."""
    return await reader.read(-1)


async def works(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """The gateway is well."""
    writer.write(b"GET /version HTTP/1.1\r\nhost: t\r\nconnection: close\r\n\r\n")
    assert (await answer(reader)).startswith(b"HTTP/1.1 200 ")


async def endless_headers(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(b"GET /version HTTP/1.1\r\n")
    for number in range(100):
        writer.write(b"x-%d: %s\r\n" % (number, b"y" * 100))
    text = await answer(reader)
    assert text.startswith(b"HTTP/1.1 431 ") and b"gateway.header_limit" in text


async def one_large_header(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(b"GET /version HTTP/1.1\r\nx: " + b"y" * 3000 + b"\r\n\r\n")
    assert (await answer(reader)).startswith(b"HTTP/1.1 431 ")


async def a_long_path(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(b"GET /" + b"y" * 3000 + b" HTTP/1.1\r\nhost: t\r\n\r\n")
    assert (await answer(reader)).startswith(b"HTTP/1.1 431 ")


async def headers_within_the_limit(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(b"GET /version HTTP/1.1\r\nconnection: close\r\nx: " + b"y" * 1500 + b"\r\n\r\n")
    assert (await answer(reader)).startswith(b"HTTP/1.1 200 ")


def test_headers_are_bounded_and_refused_in_openais_words() -> None:
    talking(endless_headers, one_large_header, a_long_path, headers_within_the_limit, works)


def test_a_body_does_not_count_as_headers() -> None:
    async def large(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        body = b'{"model": "tiny", "prompt": "hi", "max_tokens": 1, "x": "' + b"y" * 9000 + b'"}'
        head = b"POST /v1/completions HTTP/1.1\r\nconnection: close\r\ncontent-type: application/json\r\n"
        writer.write(head + b"content-length: %d\r\n\r\n" % len(body) + body)
        assert (await answer(reader)).startswith(b"HTTP/1.1 200 ")

    talking(large)


def test_a_connection_that_sends_nothing_or_half_a_request_is_closed() -> None:
    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        assert await answer(reader) == b""

    async def slow(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"GET /version HTTP/1.1\r\nx: y")
        assert (await answer(reader)).startswith(b"HTTP/1.1 408 ")

    async def drips(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """A byte now and then does not win more time."""
        ended = asyncio.create_task(answer(reader))
        while not ended.done():
            writer.write(b"G")
            await asyncio.wait([ended], timeout=0.05)
        assert ended.result() == b"" or ended.result().startswith(b"HTTP/1.1 4")

    talking(silent, slow, drips, works)


def test_a_body_that_does_not_arrive_is_given_up() -> None:
    async def half(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = b"POST /v1/completions HTTP/1.1\r\nconnection: close\r\ncontent-type: application/json\r\n"
        writer.write(head + b"content-length: 100\r\n\r\n{")
        assert (await answer(reader)).startswith(b"HTTP/1.1 408 ")

    talking(half, works, config=GatewayConfig(arrival_timeout=0.3))


def test_requests_one_after_the_other_and_pipelined_are_answered() -> None:
    async def twice(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        request = b"GET /version HTTP/1.1\r\nhost: t\r\n\r\n"
        for piece in (request, request + request):
            writer.write(piece)
            for _ in range(piece.count(b"GET")):
                head = await reader.readuntil(b"\r\n\r\n")
                assert head.startswith(b"HTTP/1.1 200 ")
                size = next(line for line in head.split(b"\r\n") if line.startswith(b"content-length:"))
                await reader.readexactly(int(size.partition(b":")[2]))

    talking(twice)


def test_the_answer_does_not_name_the_server() -> None:
    async def ask(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"GET /health HTTP/1.1\r\nconnection: close\r\n\r\n")
        assert b"uvicorn" not in (await answer(reader)).lower()

    talking(ask)


def test_connections_are_bounded_and_the_next_one_comes_in_when_one_has_gone() -> None:
    async def run(cluster: LocalCluster, client: object) -> None:
        async with cluster.serve() as url, asyncio.timeout(20):
            host, _, port = url.removeprefix("http://").rpartition(":")
            open_ones = [await asyncio.open_connection(host, int(port)) for _ in range(3)]
            # Each has been taken in when it is answered.
            for reader, writer in open_ones:
                writer.write(b"GET /version HTTP/1.1\r\nhost: t\r\n\r\n")
                await reader.readuntil(b"\r\n\r\n")
            reader, writer = await asyncio.open_connection(host, int(port))
            refusal = await answer(reader)
            assert refusal.startswith(b"HTTP/1.1 503 ") and b"retry-after: 1" in refusal
            writer.close()
            open_ones[0][1].close()
            while True:
                reader, writer = await asyncio.open_connection(host, int(port))
                writer.write(b"GET /version HTTP/1.1\r\nconnection: close\r\n\r\n")
                text = await answer(reader)
                writer.close()
                if text.startswith(b"HTTP/1.1 200 "):
                    break
            for _, one in open_ones:
                one.close()

    on_cluster(run, bounds=Bounds(arrival=10.0, connections=3))
