"""What `tandem k8s leave` goes by in a pod: the name that Ray gives an instance's process."""

from __future__ import annotations

from pathlib import Path

from k8s.leave import INSTANCE
from tests.cluster.conftest import Cluster


def test_ray_names_the_process_of_an_instance_as_leave_looks_for_it(cluster: Cluster) -> None:
    pids = [one.pid for one in cluster.status().instances]
    assert len(pids) == 3
    assert all(INSTANCE.match(Path(f"/proc/{pid}/cmdline").read_bytes()) for pid in pids)
