"""A real Prometheus scrapes a gateway under load: every expression finds something."""

from __future__ import annotations

import asyncio
import json
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from shutil import which

import httpx
import pytest
import yaml

from engine.errors import Overloaded
from k8s.objects.dashboards import expressions
from k8s.objects.monitoring import alerts
from tests.cluster.doubles import ScriptedRunner, until
from tests.cluster.local_cluster import LocalCluster, local_cluster

LIMIT = 60.0
THRESHOLD = (" == ", " != ", " < ", " > ")


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


@contextmanager
def prometheus(folder: Path, target: str) -> Iterator[str]:
    """Scrapes `target` every second; gives its own URL."""
    scrape = {"job_name": "gateway", "honor_labels": True, "static_configs": [{"targets": [target]}]}
    settings = {"global": {"scrape_interval": "1s"}, "scrape_configs": [scrape]}
    (folder / "prometheus.yml").write_text(yaml.safe_dump(settings))
    address = f"127.0.0.1:{free_port()}"
    flags = [f"--web.listen-address={address}", "--config.file=prometheus.yml", "--storage.tsdb.path=data"]
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(["prometheus", *flags], cwd=folder, stdout=log, stderr=log)
    try:
        yield f"http://{address}"
    finally:
        process.terminate()
        process.wait(30)


def queries() -> list[str]:
    """Of the dashboards with their variables filled in, of the alerts what they compare."""
    filled = [
        text.replace("$__rate_interval", "10s").replace("$model_name", "tiny").replace("$pool", ".*")
        for text in expressions()
    ]
    compared = [each["expr"].replace("[5m]", "[10s]").replace("[15m]", "[10s]") for each in alerts()]
    for text in compared:
        sign = next(sign for sign in THRESHOLD if sign in text)
        filled.append(text.partition(sign)[0])
    return filled


async def load(cluster: LocalCluster, url: str) -> None:
    """Requests without end; now and then one that is turned away, and once an instance that dies."""
    victim = list(cluster.instances.values())[-1]
    assert isinstance(victim.runner, ScriptedRunner)
    victim.runner.gate.clear()
    async with httpx.AsyncClient(base_url=url, timeout=30, trust_env=False) as client:
        body = {"model": "tiny", "prompt": "0123456789" * 3, "max_tokens": 40}
        running = asyncio.gather(*(client.post("/v1/completions", json=body) for _ in range(8)))
        await until(lambda: victim.core.pool.used)
        await victim.kill()
        victim.runner.gate.set()
        await running
        while True:
            await asyncio.gather(*(client.post("/v1/completions", json=body) for _ in range(4)))
            for instance in cluster.instances.values():
                instance.refusal = Overloaded("full")
            await client.post("/v1/completions", json=body)
            for instance in cluster.instances.values():
                instance.refusal = None
            await asyncio.sleep(0.2)


async def missing(url: str, wanted: list[str]) -> list[str]:
    """The queries that find nothing. An error in one is a failure at once."""
    empty = []
    async with httpx.AsyncClient(base_url=url, timeout=30, trust_env=False) as client:
        for query in wanted:
            answer = (await client.get("/api/v1/query", params={"query": query})).json()
            assert answer["status"] == "success", (query, json.dumps(answer))
            if not answer["data"]["result"]:
                empty.append(query)
    return empty


def test_every_expression_finds_something_under_load(tmp_path: Path, full: bool) -> None:
    if not full:
        pytest.skip("with --full only: it takes Prometheus some seconds")
    if which("prometheus") is None:
        pytest.skip("needs prometheus on the PATH")

    async def run() -> list[str]:
        async with local_cluster(instances=3) as cluster, cluster.serve() as url:
            with prometheus(tmp_path, url.removeprefix("http://")) as queried:
                working = asyncio.create_task(load(cluster, url))
                wanted = queries()
                end = asyncio.get_running_loop().time() + LIMIT
                while wanted and asyncio.get_running_loop().time() < end:
                    await asyncio.sleep(1)
                    assert not working.done(), working.exception()
                    try:
                        wanted = await missing(queried, wanted)
                    except httpx.ConnectError:
                        continue
                working.cancel()
                await asyncio.gather(working, return_exceptions=True)
                return wanted

    assert asyncio.run(run()) == []
