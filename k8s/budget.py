"""Keeps a pool's PodDisruptionBudget in step with its bounds: of the fewest instances all but one stay."""

from __future__ import annotations

from engine.errors import NotFound
from k8s import paths
from k8s.kube_api import KubeApi
from k8s.objects.access import staying
from k8s.objects.names import budget_name


def set_budget(api: KubeApi, namespace: str, cluster: str, group: str, least: int) -> None:
    """Nothing where the group has no budget.

    Raises Conflict when somebody else wrote in between: try again.
    """
    path = paths.budget(namespace, budget_name(cluster, group))
    try:
        found = api.get(path)
    except NotFound:
        return
    if found["spec"].get("minAvailable") != staying(least):
        version = {
            "op": "test",
            "path": "/metadata/resourceVersion",
            "value": found["metadata"]["resourceVersion"],
        }
        api.patch(path, [version, {"op": "add", "path": "/spec/minAvailable", "value": staying(least)}])
