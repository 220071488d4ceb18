"""One Ray cluster with the application on it for all tests of a run, and nothing left after it."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import pytest

from cluster import control_pb2 as pb
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
from cluster.control_client import ControlClient
from cluster.local import complaints
from cluster.ports import free_port
from engine.errors import Unreachable
from tests.cluster.cli_controller import Controller, recorded
from tests.cluster.tiny_model import make_tiny_model

# As `tandem up` sets it: at Ray's 15, tests that compute themselves take the cores from the instances.
os.environ.setdefault("RAY_worker_niceness", "0")

START = 120.0
"""Seconds that a whole cluster may take to start on a busy machine."""


@dataclass(frozen=True)
class Cluster:
    """A running application: its settings and a client of the control port."""

    config: Config
    control: ControlClient
    known: list[str] = field(default_factory=list)

    @property
    def url(self) -> str:
        """That of the gateway, which may have been started again elsewhere; the last one known."""
        with contextlib.suppress(Unreachable):
            self.known[:] = [gateway.url for gateway in self.status().gateways] or self.known
        if not self.known:
            self.known[:] = [
                gateway.url for gateway in self.until(lambda status: bool(status.gateways)).gateways
            ]
        return self.known[-1]

    def status(self) -> pb.ClusterStatus:
        return self.control.status()

    def ready(self, role: str) -> list[pb.Instance]:
        """The instances of a role that serve."""
        return [one for one in self.status().instances if one.role == role and one.state == "ready"]

    def last_event(self) -> int:
        return max((event.id for event in self.control.events()), default=0)

    def event(self, kind: str, after: int = 0, subject: str = "", within: float = 60.0) -> pb.Event:
        """The first event of a kind, or of "one|another", after an id, waited for."""
        end = time.monotonic() + within
        while time.monotonic() < end:
            with contextlib.suppress(Unreachable):
                for event in self.control.events(after=after):
                    if event.kind in kind.split("|") and event.subject.startswith(subject):
                        return event
            time.sleep(0.05)
        raise AssertionError(
            f"no event {kind} {subject} in {within:g} s: {list(self.control.events(after=after))}"
        )

    def restore(self) -> None:
        """Bring both pools back to the sizes of the config, and wait until they are."""
        for pool, replicas in (("prefill", 1), ("decode", 2)):
            self.control.scale(pool, replicas)
        self.until(lambda status: len(status.gateways) == 1 and all(_settled(pool) for pool in status.pools))

    def until(self, condition: Callable[[pb.ClusterStatus], bool], within: float = 60.0) -> pb.ClusterStatus:
        """Wait for a state of the cluster; the controller has events for changes, but not for every state."""
        end = time.monotonic() + within
        status = pb.ClusterStatus()
        while time.monotonic() < end:
            with contextlib.suppress(Unreachable):  # Serve may be starting the controller again
                if condition(status := self.status()):
                    return status
            time.sleep(0.05)
        raise AssertionError(f"not in {within:g} s: {status}")


def _settled(pool: pb.Pool) -> bool:
    return (pool.ready, pool.starting, pool.draining) == (pool.target, 0, 0)


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_model(tmp_path_factory.mktemp("model") / "tiny")


@pytest.fixture(scope="session")
def ray_cluster() -> Iterator[None]:
    """Ray on this machine. Its folder has a short path: unix sockets in it may have no long one."""
    import ray

    folder = tempfile.mkdtemp(prefix="tt-", dir="/tmp")
    before = {child.pid for child in psutil.Process().children(recursive=True)}
    os.environ["RAY_AUTH_MODE"] = "disabled"
    ray.init(
        address="local",
        namespace="tandem",
        include_dashboard=False,
        num_cpus=2,
        object_store_memory=96 * 2**20,
        log_to_driver=False,
        logging_level="error",
        _node_ip_address="127.0.0.1",
        _temp_dir=folder,
    )
    try:
        yield
    finally:
        ray.shutdown()
        left = [child for child in psutil.Process().children(recursive=True) if child.pid not in before]
        _, alive = psutil.wait_procs(left, timeout=10)
        for process in alive:
            process.kill()
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="session")
def session_cluster(
    ray_cluster: None, tiny_model: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Cluster]:
    """One prefill and two decode instances of a tiny random model behind one gateway."""
    from ray import serve

    from cluster.app import build
    from cluster.instance_handle import end_all

    config = Config(
        model=ModelConfig(path=str(tiny_model), name="tiny"),
        pools=PoolsConfig(prefill=PrefillPool(replicas=1), decode=DecodePool(replicas=2)),
        engine=EngineConfig(kv_memory=4 * 2**20, token_budget=64, threads=1),
        scheduler=SchedulerConfig(
            place_timeout=20.0, record=str(tmp_path_factory.mktemp("tape") / "decisions.jsonl")
        ),
        gateway=GatewayConfig(port=0, replicas=1),
        admin=AdminConfig(token="test-admin", sample_period=0.5),
        control=ControlConfig(
            token="test", port=free_port(), beat=0.1, drain_timeout=20.0, silence_timeout=3.0
        ),
        cache=CacheConfig(directory=str(tmp_path_factory.mktemp("cache"))),
    )
    serve.start(proxy_location="Disabled")
    try:
        serve.run(build(config), name="tandem", route_prefix="/")
    except RuntimeError as error:
        raise RuntimeError(complaints()) from error
    control = ControlClient(f"127.0.0.1:{config.control.port}", "test", timeout=10.0)
    try:
        yield started(config, control)
    finally:
        control._channel.close()
        serve.delete("tandem")
        asyncio.run(end_all(5.0))
        serve.shutdown()


def started(config: Config, control: ControlClient) -> Cluster:
    cluster = Cluster(config, control)
    cluster.until(
        lambda status: bool(status.gateways) and all(_settled(pool) for pool in status.pools), START
    )
    return cluster


@pytest.fixture
def cluster(session_cluster: Cluster) -> Iterator[Cluster]:
    """The running cluster; a test may scale it and kill in it, and leaves it as it should be."""
    yield session_cluster
    session_cluster.restore()


@pytest.fixture
def state_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty record of the local cluster, and a terminal whose output can be compared."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "200")
    return tmp_path


@pytest.fixture
def controller(state_home: Path) -> Iterator[Controller]:
    """A controller whose address the local cluster's record holds."""
    with recorded() as served:
        yield served
