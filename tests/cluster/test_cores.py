"""The cores that an instance computes with: of its container, not of the machine."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from cluster.cores import cores, on_one_node

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


BIG = {"CPU": 64.0, "memory": 1e12}
PODS = [{"controller": 1.0}, {"gateway": 1.0}, {"prefill": 1.0}, {"decode": 1.0}, {"decode": 1.0}]


@pytest.mark.parametrize(
    ("nodes", "prefill", "decode", "most"),
    [
        ([BIG], {}, {}, 3),
        ([{"CPU": 2.0}, BIG], {}, {}, 3),
        (PODS, {"prefill": 1.0}, {"decode": 1.0}, 1),
        ([{"prefill": 1.0, "decode": 1.0}, *PODS], {"prefill": 1.0}, {"decode": 1.0}, 2),
        ([BIG], {"CPU": 40.0}, {"CPU": 30.0}, 3),
        ([BIG], {"CPU": 40.0}, {"CPU": 40.0}, 2),
        ([BIG], {"GPU": 1.0}, {"GPU": 1.0}, 1),
        ([BIG], {"CPU": 0.0}, {"CPU": 64.0}, 3),
        ([], {}, {}, 3),
    ],
    ids=["one node", "all may be on one of two", "a pod each", "one with both", "by cores", "two", "pending",
         "for nothing", "no node"],
)  # fmt: skip
def test_cores_are_shared_among_those_that_one_node_may_have(
    nodes: list[dict[str, float]], prefill: dict[str, float], decode: dict[str, float], most: int
) -> None:
    assert on_one_node(3, nodes, [prefill, decode]) == most
