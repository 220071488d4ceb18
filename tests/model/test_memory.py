"""What is left of a machine's memory, and of a container's."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from model import memory

GIBI = 2**30


@pytest.fixture
def group(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A control group that holds 1.9 GiB and has 6 GiB of files cached, on a machine with 64 GiB."""
    (tmp_path / "meminfo").write_text(f"MemTotal: 1 kB\nMemAvailable: {64 * GIBI // 1024} kB\n")
    monkeypatch.setattr(memory, "_MEMINFO", tmp_path / "meminfo")
    monkeypatch.setattr(memory, "_CGROUP", tmp_path)
    (tmp_path / "memory.max").write_text(f"{8 * GIBI}\n")
    (tmp_path / "memory.current").write_text(f"{int(7.9 * GIBI)}\n")
    (tmp_path / "memory.stat").write_text(
        f"anon {int(1.9 * GIBI)}\nfile {6 * GIBI}\ninactive_file {5 * GIBI}\nactive_file {GIBI}\n"
    )
    return tmp_path


def test_cached_files_of_a_container_count_as_free(group: Path) -> None:
    assert memory.available_memory() == 8 * GIBI - int(7.9 * GIBI) + 6 * GIBI


def test_a_container_has_no_more_than_its_machine(group: Path) -> None:
    (group / "meminfo").write_text(f"MemAvailable: {GIBI // 1024} kB\n")
    assert memory.available_memory() == GIBI


def test_one_above_its_limit_has_nothing(group: Path) -> None:
    (group / "memory.current").write_text(f"{15 * GIBI}\n")
    assert memory.available_memory() == 0


@pytest.mark.parametrize("limit", ["max\n", None], ids=["no-limit", "no-group"])
def test_without_a_limit_the_machine_s_memory_counts(group: Path, limit: str | None) -> None:
    (group / "memory.max").unlink() if limit is None else (group / "memory.max").write_text(limit)
    assert memory.available_memory() == 64 * GIBI


def test_this_machine_has_a_plausible_number() -> None:
    assert 0 < memory.available_memory() < min(2**50, sys.maxsize)
