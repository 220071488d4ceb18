"""Packed weights: written once, mapped by all, rebuilt when damaged, and refused by name when impossible."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import sys
from collections import namedtuple
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from engine.errors import SetupError
from engine.plan import Work
from model import cache_folder, packed_cache
from model.files import model_digest
from model.runner import ModelRunner
from tests.model import tiny

ROOT = Path(__file__).resolve().parents[2]
CHILD = Path(__file__).with_name("packing_child.py")
Usage = namedtuple("Usage", "total used free")


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return tiny.write_gguf(tmp_path / "model.gguf", tiny.weights())


@pytest.fixture
def packings(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Grows each time weights are packed into a folder."""
    seen: list[Path] = []
    right = packed_cache._write

    def write(folder: Path, *arguments: Any) -> None:
        seen.append(folder)
        right(folder, *arguments)

    monkeypatch.setattr(packed_cache, "_write", write)
    return seen


def logits(model: Path, cache: Path | None, dtype: str = "float32") -> Tensor:
    runner = ModelRunner(model, cache=cache, blocks=1, dtype=dtype)
    return runner.logits([Work("a", 0, [5, 6, 7], 0, [0])])


def weights_file(cache: Path) -> Path:
    (found,) = cache.glob("*/weights.safetensors")
    return found


def child(*arguments: object) -> subprocess.Popen[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, str(CHILD), *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)


def test_shared_weights_are_private_ones(model: Path, tmp_path: Path) -> None:
    for dtype in ("float32", "bfloat16", "float64"):
        assert torch.equal(logits(model, tmp_path / "cache", dtype), logits(model, None, dtype))


def test_weights_are_packed_once_for_each_format(model: Path, tmp_path: Path, packings: list[Path]) -> None:
    for dtype in ("float32", "float32", "bfloat16", "float32", "bfloat16"):
        logits(model, tmp_path / "cache", dtype)
    assert len(packings) == 2


def test_a_changed_model_is_packed_anew(model: Path, tmp_path: Path, packings: list[Path]) -> None:
    before = logits(model, tmp_path / "cache")
    tiny.write_gguf(model, tiny.weights(seed=1))
    os.utime(model, ns=(1, 1))
    assert not torch.allclose(logits(model, tmp_path / "cache"), before)
    assert len(packings) == 2


def test_the_digest_is_of_the_contents(model: Path, tmp_path: Path) -> None:
    copy = tmp_path / "elsewhere" / model.name
    copy.parent.mkdir()
    shutil.copy(model, copy)
    assert model_digest(copy, None) == model_digest(model, tmp_path / "cache")
    with copy.open("r+b") as file:
        file.seek(-1, os.SEEK_END)
        file.write(b"\x01")
    assert model_digest(copy, None) != model_digest(model, None)


def test_tensors_are_mapped_on_aligned_addresses(model: Path, tmp_path: Path) -> None:
    runner = ModelRunner(model, cache=tmp_path / "cache", blocks=1)
    weight = runner.weights["embedding"]
    maps = [line.split() for line in Path("/proc/self/maps").read_text().splitlines()]
    ranges = [[int(end, 16) for end in line[0].split("-")] for line in maps if str(tmp_path) in line[-1]]
    assert any(start <= weight.data_ptr() < end for start, end in ranges)
    assert weight.data_ptr() % 64 == 0


def truncated(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def flipped(path: Path) -> None:
    with path.open("r+b") as file:
        file.seek(-1000, os.SEEK_END)
        byte = file.read(1)
        file.seek(-1000, os.SEEK_END)
        file.write(bytes([byte[0] ^ 1]))


def emptied(path: Path) -> None:
    path.write_bytes(b"")


def removed(path: Path) -> None:
    path.unlink()


@pytest.mark.parametrize("name", ["weights.safetensors", "sums.json", "assets.json", "sha256"])
@pytest.mark.parametrize("damage", [truncated, emptied, removed])
def test_a_damaged_entry_is_rebuilt(model: Path, tmp_path: Path, name: str, damage: Any) -> None:
    cache = tmp_path / "cache"
    expected = logits(model, cache)
    (file,) = cache.glob(f"*/{name}")
    damage(file)
    assert torch.equal(logits(model, cache), expected)


def test_a_flipped_bit_is_noticed(model: Path, tmp_path: Path, packings: list[Path]) -> None:
    expected = logits(model, tmp_path / "cache")
    flipped(weights_file(tmp_path / "cache"))
    assert torch.equal(logits(model, tmp_path / "cache"), expected)
    assert len(packings) == 2


def test_two_processes_pack_once(model: Path, tmp_path: Path) -> None:
    log = tmp_path / "log"
    children = [child(model, tmp_path / "cache", log) for _ in range(2)]
    outputs = [process.communicate(timeout=120)[0].split() for process in children]
    assert [process.returncode for process in children] == [0, 0]
    assert log.read_text().split() == ["packed"]
    assert all(int(words[words.index("loaded") + 1]) > 0 for words in outputs)


def test_a_killed_packer_leaves_nothing_that_matters(model: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    with child(model, cache, tmp_path / "log", "hang") as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "packing\n"
        process.kill()
    assert list(cache.glob("*-f32-*.[0-9]*"))
    assert torch.equal(logits(model, cache), logits(model, None))
    assert not list(cache.glob("*-f32-*.[0-9]*"))


def test_a_full_disk_is_named_with_the_remedy(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cache_folder.shutil, "disk_usage", lambda path: Usage(100, 99, 1))
    with pytest.raises(SetupError, match=r"no space is left in the cache folder .*name another cache folder"):
        logits(model, tmp_path / "cache")
    assert not list((tmp_path / "cache").glob("*-f32-*.[0-9]*"))


@pytest.mark.parametrize("code", [errno.EROFS, errno.EACCES])
def test_a_folder_that_cannot_be_written_is_named(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    def refuse(path: Path) -> None:
        raise OSError(code, os.strerror(code), str(path))

    monkeypatch.setattr(cache_folder, "_locked", refuse)
    with pytest.raises(SetupError, match="cannot be written"):
        logits(model, tmp_path / "cache")


def test_a_read_only_folder_serves_what_it_holds(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = logits(model, tmp_path / "cache")

    def refuse(path: Path) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(path))

    monkeypatch.setattr(cache_folder, "_locked", refuse)
    assert torch.equal(logits(model, tmp_path / "cache"), expected)


def test_a_file_in_the_folder_s_place_is_named(model: Path, tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("")
    with pytest.raises(SetupError, match=f"cache folder {tmp_path / 'cache'} cannot be used"):
        logits(model, tmp_path / "cache")


def test_progress_names_the_stages(model: Path, tmp_path: Path) -> None:
    seen: list[tuple[str, float]] = []

    def start() -> list[str]:
        seen.clear()
        ModelRunner(
            model, cache=tmp_path / "cache", blocks=1, progress=lambda stage, done: seen.append((stage, done))
        )
        stages = list(dict.fromkeys(stage for stage, _ in seen))
        for name in stages:
            shares = [done for stage, done in seen if stage == name]
            assert shares == sorted(shares)
            assert shares[-1] == 1.0
        return stages

    assert start() == ["reading the model", "packing weights", "mapping weights"]
    assert start() == ["reading the model", "mapping weights"]
