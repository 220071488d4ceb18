"""What a start says that failed: the reason, and nothing of what its end has made untrue."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cluster import control_pb2 as pb
from cluster import local
from cluster.config import Config, GatewayConfig
from cluster.events import NEXT_TRY
from cluster.local import LocalCluster
from engine.errors import SetupError


class Hopeless:
    """A client of a controller whose instances do not start."""

    def __enter__(self) -> Hopeless:
        return self

    def __exit__(self, *error: object) -> None:
        """Nothing to close."""

    def status(self) -> pb.ClusterStatus:
        return pb.ClusterStatus()

    def events(self) -> Iterator[pb.Event]:
        for _ in range(local.HOPELESS):
            yield pb.Event(kind="start_failed", reason=f"no memory{NEXT_TRY} 0.5 s")


@pytest.fixture
def steps(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[str]:
    """The titles of the steps of a start in which nothing is started."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    for name in ("prepare_process", "start_ray"):
        monkeypatch.setattr(local, name, lambda *given, **named: None)
    for name in ("_early_instances", "_serve"):
        monkeypatch.setattr(LocalCluster, name, lambda cluster: None)
    monkeypatch.setattr(LocalCluster, "client", lambda cluster: Hopeless())
    return []


def start(config: Config, steps: list[str]) -> None:
    @contextlib.contextmanager
    def step(title: str) -> Iterator[Any]:
        steps.append(title)
        yield lambda done, total: None

    cluster = LocalCluster(config)
    try:
        cluster.start(step, 5.0)
    finally:
        cluster._scratch.remove()


def test_a_start_without_hope_promises_no_next_try(steps: list[str]) -> None:
    with pytest.raises(SetupError) as refused:
        start(Config(), steps)
    assert refused.value.message == "the instances do not start: no memory"


@pytest.mark.parametrize(("gateways", "words"), [(1, "the gateway"), (2, "2 gateways")])
def test_a_step_counts_the_gateways(steps: list[str], gateways: int, words: str) -> None:
    with pytest.raises(SetupError):
        start(Config(gateway=GatewayConfig(replicas=gateways)), steps)
    assert f"starting the controller and {words}" in steps
