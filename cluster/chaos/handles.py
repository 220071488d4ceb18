"""What processes have open, as the kernel lists it: files, sockets, and segments that KV is copied through.

A segment (migration/shm.py) has no name in a file system. Its sender and its receiver have it open, each
once; what only one process has open, or one has open twice, is a leak: nobody will ever use it again.
"""

from __future__ import annotations

import contextlib
import os
from collections import Counter
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path

from migration.shm import SLOTS

SEGMENT = "/memfd:tandem-kv (deleted)"

LINKS = 2
"""Connections between two instances: one each way."""


@dataclass(frozen=True, slots=True)
class Handles:
    """How many of each kind a process has open; segments are in neither."""

    files: int
    sockets: int


def handles(pid: int) -> Handles:
    """Raises OSError if there is no such process any more."""
    kinds = Counter(target.partition(":")[0] for _, target in _open(pid) if target != SEGMENT)
    sockets = kinds["socket"]
    return Handles(kinds.total() - sockets, sockets)


def segments(pids: Collection[int]) -> dict[int, Counter[int]]:
    """By inode: how often each of these processes has a segment open. A mapping without a descriptor is
    once."""
    found: dict[int, Counter[int]] = {}
    for pid in pids:
        with contextlib.suppress(OSError):
            opened = Counter(_inode(path) for path, target in _open(pid) if target == SEGMENT)
            for inode in {*opened, *_mapped(pid)}:
                found.setdefault(inode, Counter())[pid] = max(1, opened[inode])
    return found


def strays(found: dict[int, Counter[int]]) -> dict[int, str]:
    """By inode: what is wrong with the segments that nobody can use any more."""
    wrong: dict[int, str] = {}
    pairs: Counter[tuple[int, ...]] = Counter()
    for inode, holders in found.items():
        pair = tuple(sorted(holders))
        pairs[pair] += 1
        if len(pair) < 2:
            wrong[inode] = f"a segment that process {pair[0]} alone has open"
        elif max(holders.values()) > 1:
            wrong[inode] = f"a segment that process {holders.most_common(1)[0][0]} has open more than once"
        elif pairs[pair] > LINKS * SLOTS:
            wrong[inode] = (
                f"a segment between processes {pair[0]} and {pair[1]}, which may have {LINKS * SLOTS}"
            )
    return wrong


def _open(pid: int) -> Iterator[tuple[str, str]]:
    """Descriptors of a process: where each is listed, and what it stands for."""
    folder = f"/proc/{pid}/fd"
    for name in os.listdir(folder):
        with contextlib.suppress(FileNotFoundError):
            yield f"{folder}/{name}", os.readlink(f"{folder}/{name}")


def _inode(path: str) -> int:
    return os.stat(path).st_ino


def _mapped(pid: int) -> set[int]:
    lines = Path(f"/proc/{pid}/maps").read_text(errors="replace").splitlines()
    return {int(line.split()[4]) for line in lines if line.endswith(SEGMENT)}
