"""What changes a running cluster without losing a request: settings applied, instances replaced."""

from __future__ import annotations

import json
from collections.abc import Mapping

from cluster import control_pb2 as pb
from cluster.controller import Controller
from cluster.members import Members
from cluster.settings_change import AT_ONCE, RESTART, differences, digest, with_settings
from engine.errors import ConfigError, NotFound, RefusedError

ALL = "all"
CONTROLLER = "controller"


async def apply(
    controller: Controller, settings: Mapping[str, object], *, dry_run: bool = False
) -> pb.ApplyReply:
    """Settings by dotted path; what is not named stays. The reply says what each difference takes; those that
    take a restart are left as they are.

    Raises ConfigError, and RefusedError for a size that no pool may have.
    """
    present = controller.sized()
    changes = differences(present, with_settings(present, settings))
    if dry_run or not changes:
        return pb.ApplyReply(changes=changes)
    for change in changes:
        text = f"from {change.before} to {change.after}: {change.reason}"
        controller.events.add("not_applied" if change.effect == RESTART else "applied", change.path, text)
    sizes = {one.path: json.loads(one.after) for one in changes if one.effect == AT_ONCE}
    deep = {one.path: json.loads(one.after) for one in changes if one.effect not in (AT_ONCE, RESTART)}
    if deep:
        # Sizes go along: new bounds and new sizes may only fit together.
        await controller.renew(deep | sizes)
    for path, replicas in sizes.items():
        controller.scale(path.split(".")[1], replicas)
    return pb.ApplyReply(changes=changes)


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
    if not names:
        raise NotFound(f"there is no instance or pool {what!r}: {', '.join([*pools, *known])}", param="what")
    for name in () if dry_run else names:
        controller.rollout.mark(name)
    return pb.RestartReply(instances=names)
