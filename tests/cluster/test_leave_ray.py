"""What `tandem k8s leave` goes by in a pod: the name that Ray gives an instance's process."""

from __future__ import annotations

import os
import signal
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest

from k8s import leave
from k8s.leave import INSTANCE
from tests.cluster.conftest import Cluster


def test_ray_names_the_process_of_an_instance_as_leave_looks_for_it(cluster: Cluster) -> None:
    pids = [one.pid for one in cluster.status().instances]
    assert len(pids) == 3
    assert all(INSTANCE.match(Path(f"/proc/{pid}/cmdline").read_bytes()) for pid in pids)


def test_a_gateway_that_leaves_ends_what_it_has_and_keeps_no_connection(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A client with a connection of its own gets its whole answer, and has to go elsewhere for the next."""
    monkeypatch.setattr(leave, "SETTLE", 0.0)
    (gateway,) = cluster.status().gateways
    body = {"model": "tiny", "prompt": "once", "max_tokens": 400, "ignore_eos": True, "stream": True}
    said: list[str] = []
    with ThreadPoolExecutor(1) as pool, httpx.Client(base_url=gateway.url, trust_env=False) as client:
        assert client.get("/ready").status_code == 200
        with client.stream("POST", "/v1/completions", json=body, timeout=60.0) as response:
            lines = (line for line in response.iter_lines() if line.startswith("data: "))
            first = next(lines)
            address = f"127.0.0.1:{cluster.config.control.port}"
            leaving = pool.submit(leave.leave_gateway, gateway.url, None, 60.0, said.append, address, "test")
            rest = list(lines)
        leaving.result(60)
        assert first.startswith("data: {")
        assert rest[-1] == "data: [DONE]"
        assert said == [f"{gateway.name} has ended its requests"]
        with pytest.raises(httpx.TransportError):
            client.get("/ready")
    os.kill(gateway.pid, signal.SIGKILL)  # as its pod does then
    cluster.until(lambda status: bool({one.name for one in status.gateways} - {gateway.name}))
