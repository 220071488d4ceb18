"""The pods that the objects of a check make, whoever makes them: their labels, containers and ports."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from cluster.config_yaml import Path
from k8s.checks.kinds import RAY_KINDS
from k8s.checks.labels import Labels
from k8s.checks.manifest import Manifest, items, mapping
from k8s.checks.ray_cluster import Group, Ray
from k8s.objects.names import AGENT_PORT, GROUP_LABEL, METRICS_PORT, NODE_TYPE_LABEL

TEMPLATES: dict[str, Path] = {
    **dict.fromkeys(("Deployment", "StatefulSet", "DaemonSet", "ReplicaSet", "Job"), ("spec", "template")),
    "CronJob": ("spec", "jobTemplate", "spec", "template"),
    "Pod": (),
}
"""Where the template of a pod stands in each kind that has one."""

KUBERAY_LABELS: Labels = {
    "app.kubernetes.io/name": "kuberay",
    "app.kubernetes.io/created-by": "kuberay-operator",
    "ray.io/is-ray-node": "yes",
    "ray.io/cluster": None,
    "ray.io/identifier": None,
    "ray.io/serve": None,
}
"""Labels that KubeRay gives to all pods of a cluster; the template's own come before them."""

RAY_PORTS = frozenset({METRICS_PORT, AGENT_PORT})
"""Ports of a pod of Ray that nobody need declare: KubeRay adds the first, Ray's agent has the second."""
KUBERAY_NAMES = frozenset({"metrics"})
"""Names of the ports that KubeRay adds to the container of Ray, the first one."""


@dataclass(frozen=True)
class Container:
    """A container that runs as long as its pod: where it stands, and what it is."""

    path: Path
    data: dict[str, Any]
    added: frozenset[str] = frozenset()
    """Names of ports that it gets undeclared."""

    @property
    def ports(self) -> list[dict[str, Any]]:
        return [each for each in items(self.data, "ports") if isinstance(each, dict)]

    @property
    def names(self) -> set[str]:
        return {str(each["name"]) for each in self.ports if "name" in each} | self.added


@dataclass(frozen=True)
class Pod:
    """All pods of one template, which stands at `path` of the object."""

    manifest: Manifest
    path: Path
    template: dict[str, Any]
    labels: Labels
    ray: bool = False

    @property
    def containers(self) -> Iterator[Container]:
        """Those that run as long as the pod: an init container does if it is restarted always."""
        for key in ("containers", "initContainers"):
            for number, each in enumerate(items(self.template, "spec", key)):
                if isinstance(each, dict) and (key == "containers" or each.get("restartPolicy") == "Always"):
                    first = self.ray and key == "containers" and number == 0
                    added = KUBERAY_NAMES if first else frozenset()
                    yield Container((*self.path, "spec", key, str(number)), each, added)

    @property
    def names(self) -> set[str]:
        """The names of its ports."""
        return {name for each in self.containers for name in each.names}

    @property
    def numbers(self) -> set[int]:
        """Its ports; empty if it declares none, and may then listen on any."""
        found = {
            port for each in self.containers for entry in each.ports
            if isinstance(port := entry.get("containerPort"), int)
        }  # fmt: skip
        return found | RAY_PORTS if found and self.ray else found


def of_object(manifest: Manifest) -> list[Pod]:
    """The pods that an object makes, by their templates; none for most kinds."""
    if manifest.kind in RAY_KINDS and manifest.group.partition("/")[0] == "ray.io":
        ray = Ray(manifest)
        return [of_group(ray, group) for group in ray.groups]
    path = TEMPLATES.get(manifest.kind)
    if path is None:
        return []
    template = mapping(manifest.data, *path)
    labels = {key: str(value) for key, value in mapping(template, "metadata", "labels").items()}
    return [Pod(manifest, path, template, labels)]


def of_group(ray: Ray, group: Group) -> Pod:
    """The pods of a group: KubeRay adds the group's labels and its own to those of the template."""
    head = group.path == ray.head.path
    template = mapping(group.data, "template")
    given = mapping(group.data, "labels") | mapping(template, "metadata", "labels")
    labels: Labels = {
        **KUBERAY_LABELS,
        **{key: str(value) for key, value in given.items()},
        NODE_TYPE_LABEL: "head" if head else "worker",
        GROUP_LABEL: "headgroup" if head else group.name,
        "ray.io/originated-from-cr-name": ray.manifest.name,
        "ray.io/originated-from-crd": ray.manifest.kind,
    }
    return Pod(ray.manifest, (*group.path, "template"), template, labels, ray=True)
