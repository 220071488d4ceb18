"""Asks a cluster in this process and looks at the answers."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Coroutine
from typing import Any

import httpx

from tests.cluster.local_cluster import LocalCluster, local_cluster

CHAT = "/v1/chat/completions"
TEXT = "/v1/completions"
HELLO = [{"role": "user", "content": "hello"}]

Test = Callable[[LocalCluster, httpx.AsyncClient], Coroutine[Any, Any, None]]


BOUND = 60.0
"""Seconds that a test may take."""


def on_cluster(test: Test, **options: Any) -> None:
    async def run() -> None:
        async with (
            asyncio.timeout(BOUND),
            local_cluster(**options) as cluster,
            cluster.client() as client,
        ):
            await test(cluster, client)

    asyncio.run(run())


def ask(
    path: str, body: dict[str, Any], headers: dict[str, str] | None = None, **options: Any
) -> httpx.Response:
    """One request to a cluster of its own."""
    found: list[httpx.Response] = []

    async def run(cluster: LocalCluster, client: httpx.AsyncClient) -> None:
        found.append(await client.post(path, json={"model": "tiny", **body}, headers=headers))

    on_cluster(run, **options)
    return found[0]


def events(response: httpx.Response) -> list[dict[str, Any]]:
    assert response.status_code == 200, response.text
    lines = [line.removeprefix("data: ") for line in response.text.splitlines() if line.startswith("data: ")]
    assert lines[-1] == "[DONE]"
    return [json.loads(line) for line in lines[:-1]]


def streamed_text(chunks: list[dict[str, Any]], index: int = 0) -> str:
    choices = [choice for chunk in chunks for choice in chunk["choices"] if choice["index"] == index]
    return "".join(
        choice["delta"].get("content", "") if "delta" in choice else choice["text"] for choice in choices
    )


def refused(response: httpx.Response, status: int, code: str, param: str | None) -> None:
    assert response.status_code == status, response.text
    error = response.json()["error"]
    assert (error["code"], error["param"]) == (code, param)
    assert error["message"]
