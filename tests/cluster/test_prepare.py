"""Packing weights in a process of its own: it says why it failed, and leaves nothing."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from cluster import local_ray, prepare
from cluster.config import CacheConfig, Config, ModelConfig
from cluster.local_ray import Scratch, start_ray
from cluster.prepare import Advance, Packing, pack
from engine.errors import SetupError

STUCK = "import time; print(1, flush=True); time.sleep(60)"


class Steps:
    """The titles of steps, and how far the last one came."""

    def __init__(self) -> None:
        self.titles: list[str] = []
        self.share = 0

    @contextmanager
    def step(self, title: str) -> Iterator[Advance]:
        self.titles.append(title)
        yield self._advance

    def _advance(self, done: int, of: int) -> None:
        self.share = done


@pytest.fixture
def config(tiny_model: Path, tmp_path: Path) -> Config:
    return Config(
        model=ModelConfig(path=str(tiny_model), name="tiny", dtype="float32"),
        cache=CacheConfig(directory=str(tmp_path)),
    )


def children() -> list[psutil.Process]:
    return psutil.Process().children()


def test_weights_are_packed_once(config: Config) -> None:
    before, steps = children(), Steps()
    pack(config, steps.step)
    assert (steps.titles, steps.share) == (["packing weights (once)"], prepare.SHARES)
    pack(config, steps.step)
    assert len(steps.titles) == 1
    assert children() == before


@pytest.mark.parametrize(
    ("script", "reason"),
    [("print('failed the disk is full'); exit(1)", "the disk is full"), ("exit(9)", "its process died")],
)
def test_a_failure_says_why(
    config: Config, monkeypatch: pytest.MonkeyPatch, script: str, reason: str
) -> None:
    monkeypatch.setattr(prepare, "_SCRIPT", script)
    before = children()
    with pytest.raises(SetupError, match=f"could not be packed: {reason}"):
        pack(config, Steps().step)
    assert children() == before


def test_who_gives_up_leaves_no_process(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prepare, "_SCRIPT", STUCK)
    before, packing = children(), Packing(config)
    packing.begin()
    assert len(children()) == len(before) + 1
    packing.end()
    packing.end()
    assert children() == before


def test_a_second_try_to_start_ray_leaves_the_packing_alone(
    config: Config, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(prepare, "_SCRIPT", STUCK)
    tries: list[list[psutil.Process]] = []

    def slow(scratch: Scratch, address: str | None) -> bool:
        tries.append(children())
        return len(tries) == 2

    monkeypatch.setattr(local_ray, "_init", slow)
    before, packing = children(), Packing(config)
    packing.begin()
    monkeypatch.setenv(local_ray.MARKER, "c")
    try:
        start_ray(Scratch("c", tmp_path), None)
        assert [len(found) - len(before) for found in tries] == [1, 1]
    finally:
        packing.end()
