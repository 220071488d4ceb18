"""A real Prometheus scrapes a real cluster under load: all expressions of dashboards and alerts find data."""

from __future__ import annotations

import json
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from shutil import which

import httpx
import pytest
import yaml

from cluster.control_client import ControlClient
from cluster.ports import free_port
from engine.errors import TandemError
from k8s.objects.dashboards import expressions
from k8s.objects.monitoring import alerts
from tests.cluster.conftest import Cluster

LIMIT = 90.0
THRESHOLD = (" == ", " != ", " < ", " > ")
MISSED = "absent("
"""How an alert begins that fires where there is nothing."""
NAMESPACE = "somewhere"


@contextmanager
def prometheus(folder: Path, target: str) -> Iterator[str]:
    """Scrapes `target` every second, as a pod of the namespace; gives its own URL."""
    place = {"targets": [target], "labels": {"namespace": NAMESPACE}}
    scrape = {"job_name": "gateway", "honor_labels": True, "static_configs": [place]}
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
    """Of the dashboards with their variables filled in, of the alerts what they compare or miss."""
    filled = [
        text.replace("$__rate_interval", "10s")
        .replace("$namespace", NAMESPACE)
        .replace("$model_name", "tiny")
        .replace("$pool", ".*")
        for text in expressions()
    ]
    asked = [each["expr"].replace("[5m]", "[10s]").replace("[15m]", "[10s]") for each in alerts(NAMESPACE)]
    filled += [text.removeprefix(MISSED).removesuffix(")") for text in asked if text.startswith(MISSED)]
    for text in (each for each in asked if not each.startswith(MISSED)):
        sign = next(sign for sign in THRESHOLD if sign in text)
        filled.append(text.partition(sign)[0])
    return filled


@contextmanager
def load(cluster: Cluster) -> Iterator[None]:
    """Requests that are handed over, some that fail, and now and then one that is moved."""
    over = threading.Event()

    def ask() -> None:
        body = {"model": "tiny", "prompt": "one two three " * 12, "max_tokens": 60, "ignore_eos": True}
        with httpx.Client(base_url=cluster.url, timeout=60, trust_env=False) as client:
            while not over.is_set():
                client.post("/v1/completions", json=body)

    def move() -> None:
        token = cluster.config.control.token
        with ControlClient(cluster.control.address, token, timeout=10.0) as control:
            while not over.wait(0.3):
                for one in control.requests()[:1]:
                    others = [other.name for other in cluster.ready("decode") if other.name != one.instance]
                    try:
                        control.migrate(one.id, others[0])
                    except TandemError:
                        # It has ended meanwhile, or is on its way already.
                        continue

    threads = [threading.Thread(target=work) for work in (ask, ask, ask, move)]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        over.set()
        for thread in threads:
            thread.join(60)


def missing(url: str, wanted: list[str]) -> list[str]:
    """The queries that find nothing. An error in one is a failure at once."""
    empty = []
    with httpx.Client(base_url=url, timeout=30, trust_env=False) as client:
        for query in wanted:
            answer = client.get("/api/v1/query", params={"query": query}).json()
            assert answer["status"] == "success", (query, json.dumps(answer))
            if not answer["data"]["result"]:
                empty.append(query)
    return empty


def test_every_expression_finds_something_under_load(cluster: Cluster, tmp_path: Path, full: bool) -> None:
    if not full:
        pytest.skip("with --full only: it takes Prometheus some seconds")
    if which("prometheus") is None:
        pytest.skip("needs prometheus on the PATH")
    wanted = queries()
    with prometheus(tmp_path, cluster.url.removeprefix("http://")) as queried, load(cluster):
        end = time.monotonic() + LIMIT
        while wanted and time.monotonic() < end:
            time.sleep(1)
            try:
                wanted = missing(queried, wanted)
            except httpx.ConnectError:
                continue
    assert wanted == []


def test_what_was_sent_was_sent_at_a_rate_that_a_machine_has(cluster: Cluster) -> None:
    """Bytes and seconds are of the same movements."""
    body = {"model": "tiny", "prompt": "one two three " * 12, "max_tokens": 8}
    for _ in range(3):
        assert httpx.post(f"{cluster.url}/v1/completions", json=body, timeout=60).status_code == 200

    def transfers() -> list[tuple[str, int, float, int]]:
        return [
            (one.transport, one.bytes, one.seconds, sum(one.buckets))
            for instance in cluster.status().instances
            for one in instance.transfers
            if one.bytes
        ]

    cluster.until(lambda status: bool(transfers()), 20)
    for transport, nbytes, seconds, count in transfers():
        assert transport in ("shm", "tcp")
        assert count > 0
        assert nbytes / seconds < 100e9


def test_metrics_go_through_rays_agents_too(cluster: Cluster) -> None:
    """Ray's agent of this node exports what the gateway copies to it, under Ray's prefix."""
    import ray

    (node,) = ray.nodes()
    address = f"http://127.0.0.1:{node['MetricsExportPort']}/metrics"
    end = time.monotonic() + 40
    text = ""
    while "ray_vllm_num_requests_running" not in text and time.monotonic() < end:
        time.sleep(0.5)
        text = httpx.get(address, timeout=10, trust_env=False).text
    assert "ray_vllm_num_requests_running" in text
    assert "ray_tandem_pool_replicas" in text
