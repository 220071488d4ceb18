"""The cores that an instance computes with: of its container, not of the machine."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from cluster.cores import cores

HERE = len(os.sched_getaffinity(0))


@pytest.fixture
def groups(tmp_path: Path) -> Path:
    (tmp_path / "pods/one").mkdir(parents=True)
    (tmp_path / "member").write_text("0::/pods/one\n")
    return tmp_path


def seen(groups: Path) -> int:
    return cores(groups, groups / "member")


def test_without_a_limit_they_are_those_of_the_process(groups: Path) -> None:
    assert seen(groups) == HERE
    (groups / "cpu.max").write_text("max 100000\n")
    assert seen(groups) == HERE


@pytest.mark.parametrize("folder", [".", "pods", "pods/one"])
def test_a_limit_on_the_group_or_one_above_it_holds(groups: Path, folder: str) -> None:
    (groups / folder / "cpu.max").write_text("50000 100000\n")
    assert seen(groups) == 1


def test_part_of_a_core_counts_as_one(groups: Path) -> None:
    (groups / "cpu.max").write_text(f"{(HERE - 1) * 100000 + 1} 100000\n")
    assert seen(groups) == HERE


def test_the_groups_of_version_1_count_too(groups: Path) -> None:
    (groups / "cpu").mkdir()
    (groups / "cpu/cpu.cfs_period_us").write_text("100000\n")
    (groups / "cpu/cpu.cfs_quota_us").write_text("-1\n")
    assert seen(groups) == HERE
    (groups / "cpu/cpu.cfs_quota_us").write_text("100000\n")
    assert seen(groups) == 1


def test_a_limit_that_cannot_be_read_is_none(groups: Path) -> None:
    (groups / "cpu.max").write_text("many\n")
    assert seen(groups) == HERE
