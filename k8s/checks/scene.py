"""All objects of a check around the RayService that runs tandem."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from cluster.config import Config
from cluster.config_yaml import Path, Problem
from k8s.checks.manifest import Manifest, mapping
from k8s.checks.ray_cluster import Group, Ray
from k8s.objects.names import GROUP_LABEL, NODE_TYPE_LABEL


@dataclass(frozen=True)
class Scene:
    """All objects of a check, and the RayService among them that runs tandem."""

    manifests: Sequence[Manifest]
    service: Manifest
    config: Config

    @cached_property
    def ray(self) -> Ray:
        return Ray(self.service)

    def of(self, kind: str) -> list[Manifest]:
        """The objects of a kind in the RayService's namespace."""
        return [m for m in self.manifests if m.kind == kind and m.namespace == self.service.namespace]

    def at(self, path: Path, message: str) -> Problem:
        return Problem(self.service.mark(path), path, message)

    def labels(self, group: Group) -> dict[str, str]:
        """The labels of a group's pods: the template's and those that KubeRay sets."""
        own = mapping(group.data, "template", "metadata", "labels")
        head = group.path == self.ray.head.path
        return {
            **{key: str(value) for key, value in own.items()},
            NODE_TYPE_LABEL: "head" if head else "worker",
            GROUP_LABEL: "headgroup" if head else group.name,
            "ray.io/originated-from-cr-name": self.service.name,
        }
