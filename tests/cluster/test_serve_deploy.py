"""The shipped config on a real Ray with its own tools: serve deploy, user_config, args, each under load.

Starts a Ray of its own with a dashboard; part of the full tier.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from cluster.control_client import ControlClient
from cluster.local_ray import MARKER, end_processes, folder_name, processes
from cluster.ports import free_port
from engine.errors import Unreachable
from tests.cluster.test_serve_schema import shipped

BIN = Path(sys.executable).parent
START = 240.0
BODY = {
    "model": "tiny", "prompt": "one two three " * 8, "max_tokens": 200, "temperature": 0, "ignore_eos": True
}  # fmt: skip


@dataclass
class Deployed:
    """A Ray with Serve; `config` is what `serve deploy` was given last."""

    folder: Path
    environment: dict[str, str]
    dashboard: str
    config: dict[str, Any]
    control: ControlClient
    proxy: str

    def tool(self, *arguments: str) -> None:
        done = subprocess.run(
            [str(BIN / arguments[0]), *arguments[1:]], cwd=self.folder,
            env=self.environment, capture_output=True, text=True, timeout=START, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr

    def deploy(self) -> None:
        file = self.folder / "serve_config.yaml"
        file.write_text(yaml.safe_dump(self.config))
        self.tool("serve", "deploy", str(file), "-a", self.dashboard)

    @property
    def application(self) -> dict[str, Any]:
        found: dict[str, Any] = self.config["applications"][0]
        return found

    def state(self) -> dict[str, Any]:
        answer = httpx.get(f"{self.dashboard}/api/serve/applications/", timeout=10, trust_env=False)
        return dict(answer.json()["applications"].get("tandem", {}))

    def until(self, condition: Any, what: str) -> Any:
        end = time.monotonic() + START
        while time.monotonic() < end:
            with suppress(Unreachable, httpx.HTTPError):
                if found := condition():
                    return found
            time.sleep(0.2)
        raise AssertionError(f"not in {START:g} s: {what}: {json.dumps(self.state(), default=str)[-3000:]}")

    def whole(self) -> bool:
        status = self.control.status()
        pools = [(pool.ready, pool.starting, pool.draining) == (pool.target, 0, 0) for pool in status.pools]
        running = self.state().get("status") == "RUNNING" and bool(status.gateways)
        return running and bool(pools) and all(pools)


@dataclass
class Load:
    """Clients that ask again and again through Serve's proxy; what came back."""

    url: str
    outcomes: list[str] = field(default_factory=list)
    longest: float = 0.0
    over: threading.Event = field(default_factory=threading.Event)

    def run(self) -> None:
        with httpx.Client(timeout=120, trust_env=False) as client:
            while not self.over.is_set():
                begun = time.monotonic()
                try:
                    answer = client.post(f"{self.url}/v1/completions", json=BODY)
                    text = answer.json()["choices"][0]["text"] if answer.status_code == 200 else answer.text
                    self.outcomes.append(f"{answer.status_code} {text}")
                except httpx.HTTPError as error:
                    self.outcomes.append(f"{type(error).__name__}: {error}")
                self.longest = max(self.longest, time.monotonic() - begun)


@contextmanager
def load(url: str, clients: int = 3) -> Iterator[Load]:
    """At its end every answer must have been whole and the same."""
    found = Load(url)
    threads = [threading.Thread(target=found.run) for _ in range(clients)]
    for thread in threads:
        thread.start()
    try:
        yield found
    finally:
        found.over.set()
        for thread in threads:
            thread.join(150)
    assert len(found.outcomes) >= len(threads)
    assert {outcome[:4] for outcome in found.outcomes} == {"200 "}, set(found.outcomes)
    assert len(set(found.outcomes)) == 1


@pytest.fixture(scope="module")
def deployed(tiny_model: Path, request: pytest.FixtureRequest) -> Iterator[Deployed]:
    if not request.config.getoption("--full"):
        pytest.skip("a Ray of its own, with a dashboard: only with --full")
    cluster = uuid.uuid4().hex[:12]
    folder = Path("/tmp") / folder_name(cluster)
    folder.mkdir()
    ports = {name: free_port() for name in ("gcs", "dashboard", "client", "proxy", "gateway", "control")}
    environment = os.environ | {
        MARKER: cluster, "RAY_AUTH_MODE": "disabled", "RAY_USAGE_STATS_ENABLED": "0", "OMP_NUM_THREADS": "1",
        "RAY_ADDRESS": f"127.0.0.1:{ports['gcs']}", "XDG_CACHE_HOME": str(folder / "cache"),
    }  # fmt: skip
    config = shipped()
    config["http_options"]["port"] = ports["proxy"]
    config["applications"][0]["args"] |= {
        "model.path": str(tiny_model), "model.name": "tiny", "engine.kv_memory": "4Mi", "engine.threads": 1,
        "gateway.port": ports["gateway"], "control.port": ports["control"], "control.token": "test",
        "pools.prefill.replicas": 1, "pools.decode.replicas": 1, "control.drain_timeout": "20s",
        # Beside other tests another controller may take longer to come than requests wait by default.
        "scheduler.place_timeout": "90s",
    }  # fmt: skip
    control = ControlClient(f"127.0.0.1:{ports['control']}", "test", timeout=10.0)
    dashboard = f"http://127.0.0.1:{ports['dashboard']}"
    here = Deployed(folder, environment, dashboard, config, control, f"http://127.0.0.1:{ports['proxy']}")
    try:
        here.tool(
            "ray", "start", "--head", f"--port={ports['gcs']}", f"--dashboard-port={ports['dashboard']}",
            "--node-ip-address=127.0.0.1", f"--temp-dir={folder}/ray", "--num-cpus=2",
            f"--ray-client-server-port={ports['client']}", f"--object-store-memory={96 * 2**20}",
            "--disable-usage-stats",
        )  # fmt: skip
        here.deploy()
        here.until(here.whole, "the application runs")
        yield here
    finally:
        control._channel.close()
        end_processes(processes(cluster), grace=0.5)
        shutil.rmtree(folder, ignore_errors=True)


def test_the_shipped_config_serves_through_serve_s_proxy_and_at_the_gateway(deployed: Deployed) -> None:
    gateway = deployed.control.status().gateways[0]
    asked = [
        httpx.post(f"{url}/v1/completions", json=BODY, timeout=60, trust_env=False).json()
        for url in (deployed.proxy, gateway.url)
    ]
    assert len({answer["choices"][0]["text"] for answer in asked}) == 1


def test_a_new_user_config_resizes_a_pool_and_restarts_nothing(deployed: Deployed) -> None:
    before = deployed.control.status()
    deployed.application["deployments"] = [
        {"name": "Controller", "user_config": {"pools": {"decode": {"replicas": 2}}}}
    ]
    with load(deployed.proxy):
        deployed.deploy()
        deployed.until(lambda: _ready(deployed, "decode") == 2, "two decode instances")
    after = deployed.control.status()
    assert after.controller_pid == before.controller_pid
    assert {one.pid for one in after.gateways} == {one.pid for one in before.gateways}
    assert {one.pid for one in before.instances} < {one.pid for one in after.instances}
    deployed.until(deployed.whole, "whole again")


def test_new_args_replace_every_process_and_no_request_fails(
    deployed: Deployed, record_property: Any
) -> None:
    before = deployed.control.status()
    deployed.application["args"] |= {"gateway.retries": 4, "engine.token_budget": 64}
    with load(deployed.proxy) as clients:
        deployed.deploy()
        deployed.until(lambda: _none_left(deployed, before), "all processes are new ones")
        deployed.until(deployed.whole, "whole again")
    record_property("longest_answer_seconds", round(clients.longest, 1))


def test_a_user_config_that_takes_a_restart_is_refused_with_the_reason(deployed: Deployed) -> None:
    kept = deployed.application["deployments"]
    deployed.application["deployments"] = [{"name": "Controller", "user_config": {"gateway.port": 1}}]
    deployed.deploy()
    deployed.until(lambda: "takes a restart" in json.dumps(deployed.state()), "the reason in Serve's status")
    deployed.application["deployments"] = kept
    deployed.deploy()
    deployed.until(deployed.whole, "whole again")


def test_an_external_scaler_and_a_policy_of_ours_set_the_number_of_gateways(deployed: Deployed) -> None:
    deployed.application["external_scaler_enabled"] = True
    deployed.deploy()
    scale = f"{deployed.dashboard}/api/v1/applications/tandem/deployments/Gateway/scale"
    deployed.until(lambda: _post(scale, {"target_num_replicas": 3}) == 200, "the external scaler is let in")
    deployed.until(lambda: len(deployed.control.status().gateways) == 3, "three gateways")
    deployed.application["external_scaler_enabled"] = False
    policy = {"policy_function": "cluster.serve_scaling:RequestsPerGateway", "policy_kwargs": {"requests": 2}}
    scaling = {
        "min_replicas": 1, "max_replicas": 3, "policy": policy, "metrics_interval_s": 0.5,
        "upscale_delay_s": 1, "downscale_delay_s": 1, "look_back_period_s": 2,
    }  # fmt: skip
    deployed.application["deployments"].append({"name": "Gateway", "autoscaling_config": scaling})
    deployed.deploy()
    deployed.until(lambda: len(deployed.control.status().gateways) == 1, "one gateway, as nothing is asked")
    with load(deployed.proxy, clients=6):
        deployed.until(
            lambda: len(deployed.control.status().gateways) == 3, "three gateways for six requests"
        )


def _post(url: str, body: dict[str, Any]) -> int:
    return httpx.post(url, json=body, timeout=10, trust_env=False).status_code


def _ready(deployed: Deployed, role: str) -> int:
    return next(pool.ready for pool in deployed.control.status().pools if pool.name == role)


def _none_left(deployed: Deployed, before: Any) -> bool:
    after = deployed.control.status()
    old = {before.controller_pid, *(one.pid for one in [*before.gateways, *before.instances])}
    new = {after.controller_pid, *(one.pid for one in [*after.gateways, *after.instances])}
    return not old & new and bool(after.gateways)
