"""A RayCluster as the checks see it, alone or inside a RayService: its groups, and where they stand."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from cluster.config_yaml import Path
from k8s.checks.manifest import Manifest, items, mapping


@dataclass(frozen=True)
class Group:
    """A head or worker group: where it stands, and what it is."""

    path: Path
    data: dict[str, Any]

    @property
    def name(self) -> str:
        return str(self.data.get("groupName", "head"))

    @property
    def pod(self) -> dict[str, Any]:
        return mapping(self.data, "template", "spec")

    @property
    def containers(self) -> list[dict[str, Any]]:
        return [each for each in items(self.pod, "containers") if isinstance(each, dict)]

    @property
    def start(self) -> dict[str, Any]:
        return mapping(self.data, "rayStartParams")

    def environment(self) -> Iterator[tuple[Path, str, object]]:
        """Path, name and value of every variable of the Ray container."""
        for container in self.containers[:1]:
            for number, variable in enumerate(items(container, "env")):
                if isinstance(variable, dict):
                    path = (*self.path, "template", "spec", "containers", "0", "env", str(number))
                    yield path, str(variable.get("name")), variable.get("value")


@dataclass(frozen=True)
class Ray:
    """A RayCluster, alone or inside a RayService."""

    manifest: Manifest

    @property
    def service(self) -> bool:
        return self.manifest.kind == "RayService"

    @property
    def path(self) -> Path:
        return ("spec", "rayClusterConfig") if self.service else ("spec",)

    @property
    def cluster(self) -> dict[str, Any]:
        return mapping(self.manifest.data, *self.path)

    @property
    def head(self) -> Group:
        return Group((*self.path, "headGroupSpec"), mapping(self.cluster, "headGroupSpec"))

    @property
    def workers(self) -> list[Group]:
        found = enumerate(items(self.cluster, "workerGroupSpecs"))
        return [
            Group((*self.path, "workerGroupSpecs", str(number)), each)
            for number, each in found
            if isinstance(each, dict)
        ]

    @property
    def groups(self) -> list[Group]:
        return [self.head, *self.workers]

    @property
    def autoscaling(self) -> bool:
        return self.cluster.get("enableInTreeAutoscaling") is True

    @property
    def ray_version(self) -> tuple[int, ...] | None:
        """None if there is none, or one that is no release."""
        match = re.fullmatch(r"(\d+)\.(\d+)(?:\.\d+)?.*", str(self.cluster.get("rayVersion", "")))
        return (int(match[1]), int(match[2])) if match else None
