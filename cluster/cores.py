"""How many CPU cores there are to compute with, and how many of them one instance takes."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from cluster.config import Config

GROUPS = Path("/sys/fs/cgroup")


def cores(groups: Path = GROUPS, membership: Path = Path("/proc/self/cgroup")) -> int:
    """Those that this process may run on; in a container with a limit no more than that, rounded up."""
    return min([len(os.sched_getaffinity(0)), *_quotas(groups, membership)])


def threads_of(config: Config, instances: int) -> int:
    """CPU threads of an instance where `instances` share the machine."""
    return config.engine.threads or max(1, cores() // instances)


def on_one_node(
    instances: int, nodes: Iterable[Mapping[str, float]], roles: Sequence[Mapping[str, float]]
) -> int:
    """How many of all `instances` one node may have to share its cores among.

    `nodes` are Ray's resources of each, `roles` those that an instance of each role asks for: a pod that
    offers one `decode` has one. A role that asks for nothing may have all its instances on one node.
    """
    rooms = [sum(_room(node, role, instances) for role in roles) for node in nodes]
    return min(instances, max(1, *rooms)) if rooms else instances


def _room(node: Mapping[str, float], role: Mapping[str, float], instances: int) -> int:
    fits = (int(node.get(name, 0.0) // amount) for name, amount in role.items() if amount > 0)
    return min(fits, default=instances)


def _quotas(groups: Path, membership: Path) -> list[int]:
    """The limits of the control groups that this process is in: version 2's `cpu.max`, or version 1's."""
    own = [groups]
    with suppress(OSError):
        for line in membership.read_text().splitlines():
            if line.startswith("0::/"):
                below = Path(line[4:])
                own += [groups / part for part in (below, *below.parents)]
    found = [_quota(folder / "cpu.max") for folder in own]
    with suppress(OSError, ValueError):
        quota = int((groups / "cpu/cpu.cfs_quota_us").read_text())
        period = int((groups / "cpu/cpu.cfs_period_us").read_text())
        found.append(math.ceil(quota / period) if quota > 0 else None)
    return [limit for limit in found if limit]


def _quota(file: Path) -> int | None:
    with suppress(OSError, ValueError, ZeroDivisionError):
        quota, period = file.read_text().split()
        return None if quota == "max" else math.ceil(int(quota) / int(period))
    return None
