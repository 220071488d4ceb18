"""A new cluster's instances begin to load before there is a controller, in a form that it can adopt."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
import ray

from cluster import fleet
from cluster.config import Config
from cluster.early_instances import EarlyInstances
from cluster.memo import Memo, latest
from cluster.worker import Worker
from engine.errors import Overloaded


class Spawned:
    """Actors that are made and told to load, without a Ray; `failing` has no process in time."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *, failing: str = "", pending: str = "") -> None:
        self.actors: dict[str, Worker] = {}
        self.loaded: list[str] = []
        self.killed: list[str] = []
        self.failing, self.pending = failing, pending
        monkeypatch.setenv("OMP_NUM_THREADS", "1")  # a worker sets it, and it is put back
        monkeypatch.setattr(ray, "nodes", lambda: [{"Alive": True, "Resources": {"CPU": 2.0}}])
        monkeypatch.setattr(ray, "cluster_resources", lambda: {"CPU": 2.0})
        monkeypatch.setattr(fleet, "spawn", self.spawn)

    def spawn(self, worker: type[Worker], name: str, *args: Any, resources: Any, timeout: float) -> Spawning:
        self.actors[name] = worker(*args)
        return Spawning(self, name)


class Spawning:
    def __init__(self, of: Spawned, name: str) -> None:
        self._of, self.name = of, name

    async def load(self, within: float) -> None:
        if self.name == self._of.failing:
            raise Overloaded(f"no answer within {within} s")
        if self.name == self._of.pending:
            await asyncio.Event().wait()
        self._of.loaded.append(self.name)

    async def kill(self) -> None:
        self._of.killed.append(self.name)


CONFIG = Config.model_validate({"pools": {"prefill": {"replicas": 1}, "decode": {"replicas": 2}}})


def test_each_pool_begins_with_its_size(monkeypatch: pytest.MonkeyPatch) -> None:
    spawned = Spawned(monkeypatch)
    EarlyInstances(CONFIG).wait()
    roles = {name: worker.role for name, worker in spawned.actors.items()}
    assert roles == {"prefill-0": "prefill", "decode-0": "decode", "decode-1": "decode"}
    assert sorted(spawned.loaded) == sorted(roles)
    assert spawned.killed == []


def test_the_first_controller_is_newer_than_what_they_know(monkeypatch: pytest.MonkeyPatch) -> None:
    """It adopts them as those of a controller before it, and asks for nothing that was never said."""
    spawned = Spawned(monkeypatch)
    EarlyInstances(CONFIG).wait()
    memos = [asyncio.run(worker.memo())[0] for worker in spawned.actors.values()]
    last = latest(map(Memo.from_bytes, memos))
    assert last == Memo()
    for worker in spawned.actors.values():
        worker._obey(last.generation + 1)


def test_one_without_a_process_is_left_to_the_controller(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else it would stand in the way of one that the controller starts, or be taken for a hung one."""
    spawned = Spawned(monkeypatch, failing="decode-1")
    EarlyInstances(CONFIG).wait()
    assert spawned.killed == ["decode-1"]
    assert sorted(spawned.loaded) == ["decode-0", "prefill-0"]


def test_a_start_that_is_interrupted_waits_for_none(monkeypatch: pytest.MonkeyPatch) -> None:
    spawned = Spawned(monkeypatch, pending="decode-1")
    early = EarlyInstances(CONFIG)
    early.end()
    early.end()
    assert "decode-1" not in spawned.loaded and spawned.killed == []
    assert not early._thread.is_alive()
