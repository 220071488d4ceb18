"""What changes a running cluster without losing a request: settings applied, instances replaced."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from cluster import control_pb2 as pb
from cluster.config import Config
from cluster.controller import Controller
from cluster.members import Members
from cluster.settings_change import AT_ONCE, RESTART, differences, digest, with_settings
from engine.errors import ConfigError, NotFound, RefusedError

ALL = "all"
SIZES = ("replicas", "min_replicas", "max_replicas", "autoscale.enabled")
CONTROLLER = "controller"


async def apply(
    controller: Controller, settings: Mapping[str, object], *, dry_run: bool = False
) -> pb.ApplyReply:
    """Settings by dotted path; what is not named stays. The reply says what each difference takes; those that
    take a restart are left as they are.

    Raises ConfigError, and RefusedError for a size that no pool may have.
    """
    present = controller.sized()
    changes = differences(present, with_settings(present, _left_to_autoscaling(present, settings)))
    if dry_run or not changes:
        return pb.ApplyReply(changes=changes)
    for change in changes:
        text = f"from {change.before} to {change.after}: {change.reason}"
        controller.events.add("not_applied" if change.effect == RESTART else "applied", change.path, text)
    values = {change.path: json.loads(change.after) for change in changes if change.effect != RESTART}
    deep = {one.path: values[one.path] for one in changes if one.effect not in (AT_ONCE, RESTART)}
    if deep:
        await controller.renew(deep)
    for role in controller.pools:
        _size(controller, role, {key: values.get(f"pools.{role}.{key}") for key in SIZES})
    return pb.ApplyReply(changes=changes)


def _size(controller: Controller, role: str, values: Mapping[str, Any]) -> None:
    """Bring what is not None into force. Raises RefusedError."""
    if all(value is None for value in values.values()):
        return
    replicas, automatic = values["replicas"], values["autoscale.enabled"]
    if automatic is False and replicas is None:
        replicas = controller.pools[role].target
    controller.scale(
        role,
        None if automatic else replicas,
        least=values["min_replicas"],
        most=values["max_replicas"],
        automatic=bool(automatic),
    )


def _left_to_autoscaling(present: Config, settings: Mapping[str, object]) -> dict[str, object]:
    """Where the settings have the controller size a pool, its size is not theirs, but within their bounds."""
    wanted = dict(settings)
    for role in ("prefill", "decode"):
        name, pool = f"pools.{role}", getattr(present.pools, role)
        least = wanted.get(f"{name}.min_replicas", pool.min_replicas)
        most = wanted.get(f"{name}.max_replicas", pool.max_replicas)
        if wanted.get(f"{name}.autoscale.enabled") and isinstance(least, int) and isinstance(most, int):
            wanted[f"{name}.replicas"] = max(least, min(most, pool.replicas))
    return wanted


async def declare(controller: Controller, settings: Mapping[str, object]) -> None:
    """Serve's `user_config`: applied once, so that what operators do later holds until it is changed.

    Raises ConfigError for settings that no running cluster can take.
    """
    name = digest(settings)
    if name == controller.declared:
        return
    changes = (await apply(controller, settings, dry_run=True)).changes
    for change in changes:
        if change.effect == RESTART:
            raise ConfigError(
                f"user_config: {change.path} takes a restart ({change.reason}): set it in args",
                param=change.path,
            )
    await apply(controller, settings)
    controller.declared = name


def restart(controller: Controller, what: str, *, dry_run: bool = False) -> pb.RestartReply:
    """Have instances replaced one after the other: a pool's, one, or "all"; or begin a new controller.

    Raises NotFound, and RefusedError for a controller that nobody would start again.
    """
    if what == CONTROLLER:
        if controller.leave is None:
            raise RefusedError("nobody would start this controller again: end it yourself", param="what")
        if not dry_run:
            controller.events.add("restarting", CONTROLLER, "a restart was asked for")
            controller.leave()
        return pb.RestartReply()
    pools = controller.pools
    names = [name for pool in pools.values() if what in (pool.role, ALL) for name in pool.members]
    if what in (known := Members(pools)):
        names = [what]
    if not names and what not in (*pools, ALL):
        there = ", ".join([*pools, *known])
        raise NotFound(
            f"there is no instance or pool {what!r}: there are {there} (gateways are Serve's)", param="what"
        )
    for name in () if dry_run else names:
        controller.rollout.mark(name)
    return pb.RestartReply(instances=names)
