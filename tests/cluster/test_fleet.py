"""A new cluster's instances begin to load before there is a controller, in a form that it can adopt."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
import ray

from cluster import fleet
from cluster.config import Config
from cluster.memo import Memo, latest
from cluster.worker import Worker
from engine.errors import TandemError


class Spawned:
    """Actors that are made and told to load, without a Ray."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *, failing: str = "") -> None:
        self.actors: dict[str, Worker] = {}
        self.loaded: list[str] = []
        monkeypatch.setattr(ray, "nodes", lambda: [{"Alive": True, "Resources": {"CPU": 2.0}}])
        monkeypatch.setattr(ray, "cluster_resources", lambda: {"CPU": 2.0})
        monkeypatch.setattr(fleet, "spawn", self.spawn)
        self.failing = failing

    def spawn(self, worker: type[Worker], name: str, *args: Any, resources: Any, timeout: float) -> Spawning:
        self.actors[name] = worker(*args)
        return Spawning(self, name)


class Spawning:
    def __init__(self, of: Spawned, name: str) -> None:
        self._of, self._name = of, name

    async def load(self, within: float) -> None:
        if self._name == self._of.failing:
            raise TandemError("no room")
        self._of.loaded.append(self._name)


CONFIG = Config.model_validate({"pools": {"prefill": {"replicas": 1}, "decode": {"replicas": 2}}})


def test_each_pool_begins_with_its_size(monkeypatch: pytest.MonkeyPatch) -> None:
    spawned = Spawned(monkeypatch)
    asyncio.run(fleet.begin(CONFIG))
    roles = {name: worker.role for name, worker in spawned.actors.items()}
    assert roles == {"prefill-0": "prefill", "decode-0": "decode", "decode-1": "decode"}
    assert sorted(spawned.loaded) == sorted(roles)


def test_the_first_controller_is_newer_than_what_they_know(monkeypatch: pytest.MonkeyPatch) -> None:
    """It adopts them as those of a controller before it, and asks for nothing that was never said."""
    spawned = Spawned(monkeypatch)
    asyncio.run(fleet.begin(CONFIG))
    memos = [asyncio.run(worker.memo())[0] for worker in spawned.actors.values()]
    last = latest(map(Memo.from_bytes, memos))
    assert last == Memo()
    for worker in spawned.actors.values():
        worker._obey(last.generation + 1)


def test_an_instance_that_cannot_start_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    Spawned(monkeypatch, failing="decode-1")
    with pytest.raises(TandemError, match="no room"):
        asyncio.run(fleet.begin(CONFIG))
