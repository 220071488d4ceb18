"""Keeps a pool's PodDisruptionBudget in step with its bounds: of the fewest instances all but one stay."""

from __future__ import annotations

from engine.errors import NotFound
from k8s import paths
from k8s.kube_api import KubeApi
from k8s.objects.access import staying
from k8s.objects.names import CLUSTER_LABEL, budget_name


def set_budget(api: KubeApi, namespace: str, cluster: str, group: str, least: int) -> None:
    """Nothing where the group has no budget that was rendered: one of somebody's own stays as it is.

    Raises Conflict when somebody else wrote in between, so that it is tried again, and InvalidKey under a
    Role that is older than this.
    """
    path = paths.budget(namespace, budget_name(cluster, group))
    try:
        found = api.get(path)
    except NotFound:
        return
    spec, metadata = found["spec"], found["metadata"]
    ours = CLUSTER_LABEL in metadata.get("labels", {}) and "maxUnavailable" not in spec
    if ours and spec.get("minAvailable") != staying(least):
        version = {"op": "test", "path": "/metadata/resourceVersion", "value": metadata["resourceVersion"]}
        api.patch(path, [version, {"op": "add", "path": "/spec/minAvailable", "value": staying(least)}])
