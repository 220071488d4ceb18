"""tandem's own rules: what each object alone may say, and what several must agree on.

They apply to a RayService that runs tandem, and to what carries its label.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from cluster.config_yaml import Path, Problem
from k8s.checks import budgets, gates, ports, selectors
from k8s.checks.manifest import Manifest, mapping
from k8s.checks.ray_cluster import Group
from k8s.checks.scene import Scene
from k8s.checks.serve import application, at_argument
from k8s.objects import secret_files
from k8s.objects.names import (
    API_GROUP,
    POOLS,
    SECRET,
)
from k8s.objects.pod import GPU

MARGIN = 15
"""Seconds that a pod has beyond the drain's deadline, at least."""

_RAY_TAG = re.compile(r"(?:^|-)ray(\d+\.\d+\.\d+)")


def check(manifests: Sequence[Manifest]) -> Iterator[Problem]:
    """What is wrong across the objects of a run."""
    for service in manifests:
        config = application(service) if service.kind == "RayService" else None
        if config is not None:
            scene = Scene(manifests, service, config)
            for rule in RULES:
                yield from rule(scene)


def _images(scene: Scene) -> Iterator[Problem]:
    version = str(scene.ray.cluster.get("rayVersion", ""))
    for group in scene.ray.groups:
        for number, container in enumerate(group.containers):
            at = (*group.path, "template", "spec", "containers", str(number), "image")
            image = str(container.get("image", ""))
            name, colon, tag = image.rpartition("/")[2].partition(":")
            if "@" in image:
                continue
            if not colon or tag == "latest":
                yield scene.at(at, f"{image}: name a tag other than latest, or what runs changes by itself")
            elif number == 0:
                yield from _ray_tag(scene, at, name, tag, version)


def _ray_tag(scene: Scene, at: Path, name: str, tag: str, version: str) -> Iterator[Problem]:
    match = _RAY_TAG.search(tag)
    found = tag.partition("-")[0] if name in ("ray", "ray-llm", "ray-ml") else match[1] if match else version
    if found != version:
        yield scene.at(at, f"the image has Ray {found}, but rayVersion is {version}")


def _offers(scene: Scene) -> Iterator[Problem]:
    """A resource that somebody asks for and nobody offers waits for ever."""
    offered = set()
    for group in scene.ray.groups:
        offered |= set(mapping(group.data, "resources")) | _started_with(group)
    asked = {
        "control.resources": scene.config.control.resources,
        "gateway.resources": scene.config.gateway.resources,
        **{f"pools.{name}.resources": getattr(scene.config.pools, name).resources for name in POOLS},
    }
    for setting, resources in asked.items():
        for name in resources:
            if name not in offered and name not in ("CPU", "GPU", "memory"):
                message = f"no group offers the resource {name}: what asks for it would never start"
                yield Problem(at_argument(scene.service, setting), (setting,), message)


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


def _non_root(scene: Scene) -> Iterator[Problem]:
    for group in scene.ray.groups:
        outer = mapping(group.pod, "securityContext").get("runAsNonRoot")
        for number, container in enumerate(group.containers):
            if mapping(container, "securityContext").get("runAsNonRoot", outer) is not True:
                at = (*group.path, "template", "spec", "containers", str(number), "securityContext")
                yield scene.at(at, "set runAsNonRoot: true, here or for the pod")


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


def _secrets(scene: Scene) -> Iterator[Problem]:
    """Names that nothing in the files has; tandem's Secrets are made by hand, as the docs say, and those
    of certificates by cert-manager."""
    known = {SECRET, *secret_files.secrets(scene.service.name)}
    known |= {m.name for kind in ("Secret", "ConfigMap") for m in scene.of(kind)}
    known |= {str(mapping(m.data, "spec").get("secretName")) for m in scene.of("Certificate")}
    for group in scene.ray.groups:
        for path, name in _references(group.pod, (*group.path, "template", "spec")):
            if name not in known:
                yield scene.at(path, f'there is no Secret or ConfigMap "{name}" in these files')


def _references(value: object, path: Path) -> Iterator[tuple[Path, str]]:
    if isinstance(value, dict):
        for key, inner in value.items():
            name = "secretName" if key == "secret" else "name"
            if key in ("secretKeyRef", "configMapKeyRef", "secretRef", "configMapRef", "secret", "configMap"):
                if isinstance(inner, dict) and name in inner and not inner.get("optional"):
                    yield (*path, key, name), str(inner[name])
            else:
                yield from _references(inner, (*path, key))
    elif isinstance(value, list):
        for number, item in enumerate(value):
            yield from _references(item, (*path, str(number)))


RULES: tuple[Callable[[Scene], Iterator[Problem]], ...] = (
    _images,
    _offers,
    _gpus,
    _grace,
    _non_root,
    _addresses,
    _pool_bounds,
    _secrets,
    selectors.nobody,
    selectors.services,
    selectors.policies,
    budgets.budgets,
    gates.gates,
    ports.services,
    ports.policies,
    ports.monitors,
    ports.probes,
)
