"""What operators do to a running cluster, done while a scenario's load goes on: restart, scale, apply."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable

from cluster import control_pb2 as pb
from cluster.chaos.scenario import Fault
from cluster.chaos.threads import to_its_end
from cluster.control_client import ControlClient
from cluster.settings_change import flat
from engine.errors import TandemError

CHANGES = ("restart", "scale", "apply")

SETTLED = 300.0
"""Seconds that a change may take."""
POLL = 0.1


async def change(control: ControlClient, fault: Fault) -> None:
    """Do it, and wait until it is done; sizes and settings are put back at the end.

    Raises TimeoutError, LookupError if there is nothing that would change, or what the cluster refuses it
    with.
    """
    if fault.kind == "restart":
        await _restart(control, fault.target)
    elif fault.kind == "scale":
        await _scale(control, fault.target)
    else:
        await _apply(control, fault.settings)


async def _restart(control: ControlClient, target: str) -> None:
    before = await asyncio.to_thread(control.status)
    names = set(await asyncio.to_thread(control.restart, target))
    if target == "controller":
        await _until(control, lambda status: status.controller_pid != before.controller_pid)
    else:
        await _until(control, lambda status: names.isdisjoint(one.name for one in status.instances))


async def _scale(control: ControlClient, target: str) -> None:
    """One more, and one less again."""
    status = await asyncio.to_thread(control.status)
    sizes = {pool.name: pool.target for pool in status.pools}
    if target not in sizes:
        raise LookupError(f"there is no pool {target}: scale {' or '.join(sizes)}")
    try:
        await to_its_end(control.scale, target, sizes[target] + 1)
        await _until(control)
    finally:
        await to_its_end(control.scale, target, sizes[target])
    await _until(control)


async def _apply(control: ControlClient, settings: dict[str, object]) -> None:
    """What is asked for, and what was there before again."""
    known = flat(await asyncio.to_thread(control.config))
    before = {path: known.get(path) for path in settings}
    if before == settings:
        raise LookupError(f"nothing would change: {settings}")
    try:
        await to_its_end(control.apply, settings)
        await _until(control)
    finally:
        await to_its_end(control.apply, before)
    await _until(control)


async def _until(
    control: ControlClient, also: Callable[[pb.ClusterStatus], bool] = lambda status: True
) -> None:
    """Both pools are at their targets, no instance is outdated, and `also` holds."""
    end = time.monotonic() + SETTLED
    while time.monotonic() < end:
        with contextlib.suppress(TandemError):  # the controller may be the one that changes
            status = await asyncio.to_thread(control.status)
            whole = all(
                pool.ready == pool.target and not pool.starting and not pool.draining for pool in status.pools
            )
            if status.pools and whole and also(status) and not any(one.outdated for one in status.instances):
                return
        await asyncio.sleep(POLL)
    raise TimeoutError(f"the change did not settle in {SETTLED:g} s")
