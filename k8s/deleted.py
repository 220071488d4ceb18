"""What becomes of a pool whose Pool is deleted: it goes back to what the config says, and no instance ends.

The config is the one that the RayService gives to the application. A RayCluster alone says nothing of it, so
a pool there stays as it is.
"""

from __future__ import annotations

from typing import Protocol

import yaml

from cluster import control_pb2 as pb
from cluster.config import PoolConfig
from engine.errors import NotFound
from k8s import paths
from k8s.checks.serve import settings_of
from k8s.kube_api import KubeApi
from k8s.yaml_text import Object


class Scaling(Protocol):
    """What is asked of the controller."""

    def scale(
        self,
        pool: str,
        replicas: int | None = None,
        *,
        least: int | None = None,
        most: int | None = None,
        automatic: bool = False,
    ) -> pb.ScaleReply: ...


def configured(api: KubeApi, namespace: str, reference: Object, role: str) -> PoolConfig | None:
    """What the config says of a pool; None where nobody can tell."""
    if reference.get("kind", "RayService") != "RayService":
        return None
    try:
        service = api.get(paths.ray(namespace, "RayService", reference["name"]))
    except NotFound:
        return None
    config = settings_of(yaml.safe_load(service["spec"].get("serveConfigV2", "")))
    found: PoolConfig | None = None if config is None else getattr(config.pools, role)
    return found


def give_back(control: Scaling, found: pb.Pool, config: PoolConfig) -> None:
    """Bounds, and who sets the pool, as the config says; the size stays.

    Raises RefusedError where the present size is outside these bounds and nobody would change it.
    """
    automatic = config.autoscale.enabled
    control.scale(
        found.name,
        found.target if found.autoscale and not automatic else None,
        least=config.min_replicas,
        most=config.max_replicas,
        automatic=automatic and not found.autoscale,
    )
