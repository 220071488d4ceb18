"""A Ray whose head keeps its state in Redis and can die, with tandem on it: run as a script.

    head ── Serve's controller, tandem's controller
    worker ── 1 gateway, 1 prefill, 2 decode

It says `ready PORT`, the port being that of the controller. `kill` on its stdin kills every process of the
head, which it answers with `dead`; `start` starts a head again at the same address, which it answers with
`started`. It ends when its stdin does.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import psutil
import ray
from ray import serve

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
    SchedulerConfig,
)
from cluster.ports import free_port
from tests.cluster.two_nodes import TOKEN, ray_start, until

ABSENCE = 180.0
"""Seconds that a request waits for the head, and Ray's nodes for its state."""


@contextmanager
def redis(server: str, folder: str) -> Iterator[str]:
    """Gives host:port."""
    port = free_port()
    options = [
        "--port",
        str(port),
        "--bind",
        "127.0.0.1",
        "--save",
        "",
        "--appendonly",
        "no",
        "--dir",
        folder,
    ]
    process = subprocess.Popen([server, *options], stdout=subprocess.DEVNULL)
    try:
        yield f"127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(30)


class Head:
    """Ray's head node, again and again at one address."""

    def __init__(self, folder: str) -> None:
        self._folder = folder
        self._port = free_port()
        self.address = f"127.0.0.1:{self._port}"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        # A pod's files go with it; beside these, Ray takes the worker for a head that still runs here.
        Path(self._folder, "ray_current_cluster").unlink(missing_ok=True)
        self._process = ray_start(
            "--head",
            f"--port={self._port}",
            f"--temp-dir={self._folder}",
            "--include-dashboard=false",
            resources={"head": 10},
        )

    def kill(self) -> None:
        """SIGKILL to all of it at once."""
        assert self._process is not None
        process = psutil.Process(self._process.pid)
        dying = [process, *process.children(recursive=True)]
        for one in dying:
            with contextlib.suppress(psutil.NoSuchProcess):
                one.kill()
        self._process.wait(10)
        psutil.wait_procs(dying, timeout=10)


def settings(model: str, folder: str) -> Config:
    worker = {"worker": 1.0}
    return Config(
        model=ModelConfig(path=model, name="tiny"),
        pools=PoolsConfig(
            prefill=PrefillPool(replicas=1, resources=worker),
            decode=DecodePool(replicas=2, resources=worker),
        ),
        engine=EngineConfig(kv_memory=4 * 2**20, token_budget=64, threads=1),
        scheduler=SchedulerConfig(place_timeout=ABSENCE),
        gateway=GatewayConfig(port=0, replicas=1, resources=worker),
        admin=AdminConfig(token="test-admin"),
        control=ControlConfig(token=TOKEN, port=free_port(), resources={"head": 1}),
        cache=CacheConfig(directory=f"{folder}/cache"),
    )


def deploy(address: str, config: Config) -> None:
    """In a process of its own: a driver dies with the head that it is connected to."""
    ray.init(address=address, namespace="tandem", log_to_driver=False, logging_level="error")
    until(lambda: sum(node["Alive"] for node in ray.nodes()) == 2, "the worker has joined")
    serve.start(proxy_location="Disabled")
    serve.run(build(config), name="tandem", route_prefix="/")
    ray.shutdown()


def obey(head: Head) -> None:
    for line in sys.stdin:
        if line.strip() == "kill":
            head.kill()
            tell("dead")
        elif line.strip() == "start":
            head.start()
            tell("started")


def tell(word: str) -> None:
    sys.stdout.write(f"{word}\n")
    sys.stdout.flush()


def main(model: str, redis_server: str) -> None:
    folder = tempfile.mkdtemp(prefix="th-", dir="/tmp")
    # `ray start` listens on the machine's own address.
    os.environ.update(RAY_AUTH_MODE="token", RAY_AUTH_TOKEN=secrets.token_hex(32))
    os.environ.update(RAY_gcs_rpc_server_reconnect_timeout_s=str(int(ABSENCE)))
    try:
        with ExitStack() as stack:
            os.environ["RAY_REDIS_ADDRESS"] = stack.enter_context(redis(redis_server, folder))
            head = Head(folder)
            head.start()
            worker = ray_start(f"--address={head.address}", resources={"worker": 10})
            stack.callback(worker.wait, 30)
            stack.callback(worker.terminate)
            config = settings(model, folder)
            (Path(folder) / "tandem.json").write_text(config.model_dump_json())
            arguments = ["deploy", head.address, f"{folder}/tandem.json"]
            subprocess.run([sys.executable, "-m", __spec__.name, *arguments], check=True, timeout=120)
            tell(f"ready {config.control.port}")
            obey(head)
    finally:
        _, alive = psutil.wait_procs(psutil.Process().children(recursive=True), timeout=1)
        for process in alive:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    if sys.argv[1] == "deploy":
        deploy(sys.argv[2], Config.model_validate_json(Path(sys.argv[3]).read_text()))
    else:
        main(sys.argv[1], sys.argv[2])
