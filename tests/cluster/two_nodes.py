"""A Ray of two nodes on this machine with tandem on it, in a process of its own: run as a script.

    head ── controller, gateways, prefill, 1 decode ── room for 2 more decode, which a guest holds at first
    worker ── 2 decode

So both instances of the worker can be placed on the head when the worker has died. It says `ready PORT`, the
port being that of the controller, and ends when its stdin does.
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import psutil
import ray
from ray import serve
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from cluster.app import build
from cluster.config import (
    AdminConfig,
    CacheConfig,
    Config,
    ControlConfig,
    DecodePool,
    EngineConfig,
    GatewayConfig,
    ModelConfig,
    PoolsConfig,
    PrefillPool,
)
from cluster.control_client import ControlClient
from cluster.instance_handle import end_all
from cluster.ports import free_port
from tests.cluster.conftest import started

TOKEN = "test"
ROOM = 3
"""Decode instances that the head has room for, and that there are."""
AWAY = 2
"""Those of them that begin on the worker."""


@contextmanager
def head(folder: str) -> Iterator[str]:
    """Gives the address that nodes join at."""
    ray.init(
        address="local",
        namespace="tandem",
        include_dashboard=False,
        num_cpus=2,
        resources={"head": 10, "decode": ROOM},
        object_store_memory=96 * 2**20,
        log_to_driver=False,
        logging_level="error",
        _node_ip_address="127.0.0.1",
        _temp_dir=folder,
    )
    try:
        yield str(ray.get_runtime_context().gcs_address)
    finally:
        ray.shutdown()


def ray_start(*options: str, resources: dict[str, int]) -> subprocess.Popen[bytes]:
    """A node of Ray, as its manual has them started."""
    return subprocess.Popen(
        [
            str(Path(sys.executable).parent / "ray"), "start", *options, "--block",
            "--node-ip-address=127.0.0.1", "--num-cpus=2", f"--object-store-memory={96 * 2**20}",
            f"--resources={json.dumps(resources)}",
            f"--dashboard-agent-listen-port={free_port()}", "--disable-usage-stats",
        ],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, stdin=subprocess.DEVNULL,
    )  # fmt: skip


@contextmanager
def worker(address: str) -> Iterator[None]:
    """A node beside the head's."""
    process = ray_start(f"--address={address}", resources={"decode": AWAY})
    try:
        until(lambda: sum(node["Alive"] for node in ray.nodes()) == 2, "the worker has joined")
        yield
    finally:
        process.terminate()
        process.wait(30)


def until(condition: object, what: str, within: float = 60.0) -> None:
    end = time.monotonic() + within
    while not condition():  # type: ignore[operator]
        if time.monotonic() > end:
            raise TimeoutError(f"not in {within:g} s: {what}")
        time.sleep(0.1)


@contextmanager
def guest() -> Iterator[None]:
    """Holds so much of the head's room that no more than one decode instance fits beside it."""

    @ray.remote(num_cpus=0, resources={"decode": AWAY})
    class Guest:
        def there(self) -> None: ...

    here = ray.get_runtime_context().get_node_id()
    actor = Guest.options(scheduling_strategy=NodeAffinitySchedulingStrategy(here, soft=False)).remote()  # type: ignore[attr-defined]
    ray.get(actor.there.remote())
    try:
        yield
    finally:
        ray.kill(actor)


@contextmanager
def application(config: Config) -> Iterator[None]:
    serve.start(proxy_location="Disabled")
    serve.run(build(config), name="tandem", route_prefix="/")
    try:
        yield
    finally:
        serve.delete("tandem")
        asyncio.run(end_all(5.0))
        serve.shutdown()


def settings(model: str, folder: str) -> Config:
    return Config(
        model=ModelConfig(path=model, name="tiny"),
        pools=PoolsConfig(
            prefill=PrefillPool(replicas=1, resources={"head": 1}),
            decode=DecodePool(replicas=ROOM, resources={"decode": 1}),
        ),
        engine=EngineConfig(kv_memory=4 * 2**20, token_budget=64, threads=1),
        gateway=GatewayConfig(port=0, replicas=1, resources={"head": 1}),
        admin=AdminConfig(token="test-admin"),
        control=ControlConfig(token=TOKEN, port=free_port(), resources={"head": 1}),
        cache=CacheConfig(directory=f"{folder}/cache"),
    )


def main(model: str) -> None:
    folder = tempfile.mkdtemp(prefix="tn-", dir="/tmp")
    os.environ["RAY_AUTH_MODE"] = "disabled"
    try:
        with ExitStack() as stack:
            stack.enter_context(worker(stack.enter_context(head(folder))))
            config = settings(model, folder)
            control = ControlClient(f"127.0.0.1:{config.control.port}", TOKEN, timeout=10.0)
            stack.callback(control._channel.close)
            with guest():
                stack.enter_context(application(config))
                started(config, control)
            sys.stdout.write(f"ready {config.control.port}\n")
            sys.stdout.flush()
            sys.stdin.read()
    finally:
        _, alive = psutil.wait_procs(psutil.Process().children(recursive=True), timeout=10)
        for process in alive:
            process.kill()
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main(sys.argv[1])
