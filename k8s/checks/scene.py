"""All objects of a check around the RayService that runs tandem."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property

from cluster.config import Config
from cluster.config_yaml import Path, Problem
from k8s.checks import pods
from k8s.checks.labels import Labels, Requirement, selects
from k8s.checks.manifest import Manifest, mapping
from k8s.checks.pods import Pod
from k8s.checks.ray_cluster import Group, Ray
from k8s.objects.names import CLUSTER_LABEL


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

    @cached_property
    def pods(self) -> list[Pod]:
        """Those that the objects in the RayService's namespace make, its own among them."""
        near = [m for m in self.manifests if m.namespace == self.service.namespace]
        return [pod for each in near for pod in pods.of_object(each)]

    @property
    def ours(self) -> list[Pod]:
        """Those of the RayService, and of what carries the label that tandem's objects have."""
        return [
            each for each in self.pods
            if each.manifest is self.service or CLUSTER_LABEL in mapping(each.manifest.metadata, "labels")
        ]  # fmt: skip

    def selected(self, wanted: Iterable[Requirement]) -> list[Pod]:
        return [pod for pod in self.pods if selects(wanted, pod.labels)]

    def labels(self, group: Group) -> Labels:
        """The labels of a group's pods: the template's and those that KubeRay sets."""
        return pods.of_group(self.ray, group).labels
