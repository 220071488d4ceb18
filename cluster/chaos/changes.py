"""What operators do to a running cluster, done while a scenario's load goes on: restart, scale, apply."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable

from cluster import control_pb2 as pb
from cluster.chaos.scenario import Fault
from cluster.control_client import ControlClient
from engine.errors import TandemError

CHANGES = ("restart", "scale", "apply")

SETTLED = 300.0
"""Seconds that a change may take."""
POLL = 0.1


def change(control: ControlClient, fault: Fault) -> None:
    """Do it, and wait until it is done. Raises TimeoutError, or what the cluster refuses it with."""
    if fault.kind == "restart" and fault.target == "controller":
        before = control.status().controller_pid
        control.restart(fault.target)
        _until(control, lambda status: status.controller_pid != before)
    elif fault.kind == "restart":
        names = set(control.restart(fault.target))
        _until(control, lambda status: names.isdisjoint(one.name for one in status.instances))
    elif fault.kind == "scale":
        size = next(pool.target for pool in control.status().pools if pool.name == fault.target)
        for target in (size + 1, size):
            control.scale(fault.target, target)
            _until(control)
    else:
        control.apply(fault.settings)
        _until(control)


def _until(control: ControlClient, also: Callable[[pb.ClusterStatus], bool] = lambda status: True) -> None:
    """Both pools are at their targets, no instance is outdated, and `also` holds."""
    end = time.monotonic() + SETTLED
    while time.monotonic() < end:
        with contextlib.suppress(TandemError):  # the controller may be the one that changes
            status = control.status()
            whole = all(
                pool.ready == pool.target and not pool.starting and not pool.draining for pool in status.pools
            )
            if status.pools and whole and also(status) and not any(one.outdated for one in status.instances):
                return
        time.sleep(POLL)
    raise TimeoutError(f"the change did not settle in {SETTLED:g} s")
