"""tandem's own rules: what each object alone may say, and what several must agree on.

They apply to a RayService that runs tandem, and to what carries its label.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from cluster.config_yaml import Problem
from k8s.checks import budgets, containers, gates, network, ports, selectors
from k8s.checks.manifest import Manifest, mapping
from k8s.checks.ray_cluster import Group
from k8s.checks.scene import Scene
from k8s.checks.serve import application, at_argument
from k8s.objects.names import (
    API_GROUP,
    POOLS,
)
from k8s.objects.pod import GPU, may_have_gpus

MARGIN = 15
"""Seconds that a pod has beyond the drain's deadline, at least."""


def check(manifests: Sequence[Manifest]) -> Iterator[Problem]:
    """What is wrong across the objects of a run."""
    for service in manifests:
        config = application(service) if service.kind == "RayService" else None
        if config is not None:
            scene = Scene(manifests, service, config)
            for rule in RULES:
                yield from rule(scene)


def _offers(scene: Scene) -> Iterator[Problem]:
    """A resource that somebody asks for and nobody offers waits for ever."""
    offered = _offered(scene)
    asked = {
        "control.resources": scene.config.control.resources,
        "gateway.resources": scene.config.gateway.resources,
        **{f"pools.{name}.resources": getattr(scene.config.pools, name).resources for name in POOLS},
    }
    for setting, resources in asked.items():
        for name in resources:
            if name not in offered:
                message = f"no group offers the resource {name}: what asks for it would never start"
                yield Problem(at_argument(scene.service, setting), (setting,), message)


def _offered(scene: Scene) -> set[str]:
    """What pods offer: the resources of their groups, and GPUs where a container has some."""
    offered = {"CPU", "memory"}
    for group in scene.ray.groups:
        offered |= set(mapping(group.data, "resources")) | _started_with(group)
        offered |= {"GPU"} if _limited_gpus(group) else set()
    return offered


def _limited_gpus(group: Group) -> list[str]:
    """The numbers of the containers that have GPUs."""
    found = enumerate(group.containers)
    return [str(number) for number, each in found if _amount(mapping(each, "resources", "limits").get(GPU))]


def _amount(limit: object) -> bool:
    return str(limit or "0") != "0"


def _started_with(group: Group) -> set[str]:
    """The names in rayStartParams.resources: JSON in a quoted word."""
    found: Any = group.start.get("resources", "")
    for _ in range(2):
        try:
            found = json.loads(found) if isinstance(found, str) else found
        except ValueError:
            return set()
    return set(found) if isinstance(found, dict) else set()


def _gpus(scene: Scene) -> Iterator[Problem]:
    for group in scene.ray.groups:
        for number, container in enumerate(group.containers):
            limit = mapping(container, "resources", "limits").get(GPU)
            request = mapping(container, "resources", "requests").get(GPU, limit)
            at = (*group.path, "template", "spec", "containers", str(number), "resources", "requests", GPU)
            if str(limit) != str(request):
                yield scene.at(
                    at, f"GPUs cannot be overcommitted: the request {request} is not the limit {limit}"
                )


def _rounded(scene: Scene) -> Iterator[Problem]:
    """An instance that finds a GPU does not start with numbers that only CPUs have."""
    if may_have_gpus(scene.config):
        return
    for group in scene.ray.workers:
        for number in _limited_gpus(group):
            at = (*group.path, "template", "spec", "containers", number, "resources", "limits", GPU)
            yield scene.at(at, "model.activations is int8, which is for CPUs: leave the GPUs out")


def _grace(scene: Scene) -> Iterator[Problem]:
    need = scene.config.control.drain_timeout + MARGIN
    for group in scene.ray.workers:
        seconds = group.pod.get("terminationGracePeriodSeconds", 30)
        if isinstance(seconds, int) and seconds < need:
            at = (*group.path, "template", "spec", "terminationGracePeriodSeconds")
            yield scene.at(
                at,
                f"{seconds} s is too short to drain: at least control.drain_timeout + {MARGIN} s = {need:g}",
            )
        for container in group.containers[:1]:
            if not mapping(container, "lifecycle", "preStop"):
                at = (*group.path, "template", "spec", "containers", "0", "lifecycle")
                yield scene.at(
                    at, "without lifecycle.preStop requests end with their pod: see `tandem k8s leave`"
                )


def _addresses(scene: Scene) -> Iterator[Problem]:
    for setting in ("gateway.host", "control.host", "transfer.host"):
        section, name = setting.split(".")
        if str(getattr(getattr(scene.config, section), name)).startswith(("127.", "localhost", "::1")):
            mark = at_argument(scene.service, setting)
            yield Problem(mark, (setting,), "other pods cannot reach a loopback address: set 0.0.0.0")
    if scene.config.transfer.transport != "tcp":
        mark = at_argument(scene.service, "transfer.transport")
        message = "pods of one node don't share /dev/shm, though they share its kernel: set tcp"
        yield Problem(mark, ("transfer.transport",), message)
    if scene.config.control.port == 0:
        mark = at_argument(scene.service, "control.port")
        yield Problem(mark, ("control.port",), "the operator and `tandem` need a fixed port here")


def _pool_bounds(scene: Scene) -> Iterator[Problem]:
    groups = {group.name: group for group in scene.ray.workers}
    for pool in scene.of("Pool"):
        if pool.group.partition("/")[0] != API_GROUP:
            continue
        role = str(mapping(pool.data, "spec").get("role"))
        if mapping(pool.data, "spec", "clusterRef").get("name") != scene.service.name:
            continue
        if role not in groups:
            yield from pool.problems([(("spec", "role"), f"the RayService has no worker group {role}")])
            continue
        for key, default in (("minReplicas", 1), ("maxReplicas", 64)):
            here, there = mapping(pool.data, "spec").get(key, default), groups[role].data.get(key)
            if here != there:
                message = f"{here} here, but {there} in the worker group {role}: they must be equal"
                yield from pool.problems([(("spec", key), message)])


RULES: tuple[Callable[[Scene], Iterator[Problem]], ...] = (
    containers.images,
    _offers,
    _gpus,
    _rounded,
    _grace,
    containers.non_root,
    _addresses,
    _pool_bounds,
    containers.secrets,
    selectors.nobody,
    selectors.services,
    network.cluster,
    network.operator,
    budgets.budgets,
    gates.gates,
    ports.services,
    ports.policies,
    ports.monitors,
    ports.probes,
)
