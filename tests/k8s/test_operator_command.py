"""`tandem k8s operator` as it runs in its pod: kubeconfig, a real control port, and a real controller."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from cluster.config import Config, ControlConfig
from cluster.control import serve_control
from cluster.controller import Controller
from engine.errors import TandemError
from k8s import paths
from tests.k8s.servers import Server
from tests.k8s.trees import command_line

CONFIG = Config(control=ControlConfig(token="secret"))


class Nobody:
    """A fleet whose instances never come."""

    def spawn(self, name: str, role: str, generation: int, memo: bytes, instances: int) -> None:
        raise TandemError("there are no machines")

    async def existing(self) -> list[None]:
        return []


@contextmanager
def controller() -> Iterator[tuple[Controller, str]]:
    """A controller with its port, in a thread of its own."""
    started: list[tuple[Controller, str]] = []
    up, stop = threading.Event(), threading.Event()

    async def serve() -> None:
        made = Controller(CONFIG, Nobody(), version="1")  # type: ignore[arg-type]
        await made.start()
        port, address = await serve_control(made)
        started.append((made, address))
        up.set()
        await asyncio.to_thread(stop.wait)
        await port.stop(None)
        await made.close()

    thread = threading.Thread(target=asyncio.run, args=(serve(),))
    thread.start()
    try:
        assert up.wait(20)
        yield started[0]
    finally:
        stop.set()
        thread.join()


@pytest.fixture
def kubeconfig(fake_server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "config"
    content = {
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": "it",
        "contexts": [{"name": "it", "context": {"cluster": "it", "user": "it"}}],
        "clusters": [{"name": "it", "cluster": {"server": fake_server.url}}],
        "users": [{"name": "it", "user": {"token": fake_server.token}}],
    }
    path.write_text(yaml.safe_dump(content))
    monkeypatch.setattr("kubernetes.config.kube_config.KUBE_CONFIG_DEFAULT_LOCATION", str(path))
    return path


def operate(address: str, namespace: str) -> int:
    flags = ["--address", address, "--token", "secret"]
    verb = ["k8s", "operator", "--namespace", namespace, "--once"]
    return CliRunner().invoke(command_line(), [*flags, *verb]).exit_code


def pool(server: Server, namespace: str, role: str = "decode", **spec: object) -> None:
    body = {
        "apiVersion": "tandem.dev/v1alpha1",
        "kind": "Pool",
        "metadata": {"name": role, "namespace": namespace},
        "spec": {"role": role, "clusterRef": {"name": "tandem"}, **spec},
    }
    server.api.create(paths.pools(namespace), body)


def test_one_round_scales_a_real_controller(fake_server: Server, kubeconfig: Path) -> None:
    namespace = fake_server.namespace()
    pool(fake_server, namespace, replicas=5, autoscale=False)
    with controller() as (made, address):
        assert operate(address, namespace) == 0
        assert made.pools["decode"].target == 5


def test_a_size_outlives_a_real_controller(fake_server: Server, kubeconfig: Path) -> None:
    """Another one has the settings' two instances, and is asked for the Pool's five."""
    namespace = fake_server.namespace()
    pool(fake_server, namespace)
    with controller() as (first, address):
        assert operate(address, namespace) == 0
        fake_server.api.merge(paths.pool(namespace, "decode"), {"spec": {"replicas": 5}})
        assert operate(address, namespace) == 0
        assert first.pools["decode"].target == 5
    with controller() as (second, address):
        assert second.pools["decode"].target == 2
        assert operate(address, namespace) == 0
        assert second.pools["decode"].target == 5


def test_the_switch_of_a_pool_reaches_a_real_controller(fake_server: Server, kubeconfig: Path) -> None:
    namespace = fake_server.namespace()
    pool(fake_server, namespace)
    with controller() as (made, address):
        assert operate(address, namespace) == 0
        for wanted in (True, False):
            fake_server.api.merge(paths.pool(namespace, "decode"), {"spec": {"autoscale": wanted}})
            assert operate(address, namespace) == 0
            assert made.scaler.scaling["decode"].automatic is wanted


def test_what_a_real_controller_refuses_is_a_condition(fake_server: Server, kubeconfig: Path) -> None:
    namespace = fake_server.namespace()
    pool(fake_server, namespace, minReplicas=9, maxReplicas=8)
    with controller() as (made, address):
        assert operate(address, namespace) == 0
        assert made.pools["decode"].target == 2
    conditions = fake_server.api.get(paths.pool(namespace, "decode"))["status"]["conditions"]
    refused = next(each for each in conditions if each["type"] == "Refused")
    assert refused["status"] == "True" and "9 instances at least and 8 at most" in refused["message"]


@pytest.mark.parametrize("name", ["prefill", "decode"])
@pytest.mark.parametrize(("least", "target"), [(0, 0), (1, 2)])
def test_a_pool_is_scaled_to_none_where_that_is_asked_for_twice(
    fake_server: Server, kubeconfig: Path, name: str, least: int, target: int
) -> None:
    namespace = fake_server.namespace()
    pool(fake_server, namespace, name, replicas=0, minReplicas=least, autoscale=False)
    with controller() as (made, address):
        made.scale(name, 2)
        assert operate(address, namespace) == 0
        assert made.pools[name].target == target
    conditions = fake_server.api.get(paths.pool(namespace, name))["status"]["conditions"]
    assert {each["type"]: each["status"] for each in conditions}["Refused"] == (
        "False" if target == 0 else "True"
    )


def test_a_real_controller_takes_a_size_with_its_bounds(fake_server: Server, kubeconfig: Path) -> None:
    namespace = fake_server.namespace()
    pool(fake_server, namespace, replicas=65, maxReplicas=100, autoscale=False)
    with controller() as (made, address):
        assert operate(address, namespace) == 0
        assert made.pools["decode"].target == 65
        assert made.scaler.scaling["decode"].most == 100
        made.scaler.set("decode", replicas=None, most=80)
        assert operate(address, namespace) == 0
    assert fake_server.api.get(paths.pool(namespace, "decode"))["spec"]["maxReplicas"] == 80


def test_without_a_controller_it_ends_with_4(fake_server: Server, kubeconfig: Path) -> None:
    namespace = fake_server.namespace()
    pool(fake_server, namespace)
    assert operate("127.0.0.1:9", namespace) == 4
