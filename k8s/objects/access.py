"""Namespace, service accounts, rights, and how many pods may be taken away at once."""

from __future__ import annotations

from cluster.config import Config
from k8s.objects.names import (
    API_GROUP,
    CLUSTER_LABEL,
    GATEWAY,
    GROUP_LABEL,
    GROUPS,
    PLURAL,
    POOLS,
    budget_name,
    metadata,
    operator_name,
    pods,
)
from k8s.yaml_text import Object

RBAC = "rbac.authorization.k8s.io"
READ_AND_PATCH = ["get", "list", "watch", "patch"]


def namespace(config: Config) -> Object:
    return {
        "apiVersion": "v1",
        "kind": "Namespace",
        "metadata": {
            "name": config.kubernetes.namespace,
            "labels": {
                "app.kubernetes.io/part-of": "tandem",
                CLUSTER_LABEL: config.kubernetes.name,
                "pod-security.kubernetes.io/enforce": "baseline",
                "pod-security.kubernetes.io/warn": "restricted",
            },
        },
    }


def service_accounts(config: Config) -> list[Object]:
    """Workers need no token of Kubernetes. The head's account is KubeRay's: its autoscaler uses it."""
    return [
        {
            "apiVersion": "v1",
            "kind": "ServiceAccount",
            "metadata": metadata(config, f"{config.kubernetes.name}-worker"),
            "automountServiceAccountToken": False,
        },
        {
            "apiVersion": "v1",
            "kind": "ServiceAccount",
            "metadata": metadata(config, operator_name(config)),
            "automountServiceAccountToken": False,
        },
    ]


def rights(config: Config) -> list[Object]:
    """What the operator may do, in its own namespace only."""
    name = operator_name(config)
    return [
        {
            "apiVersion": f"{RBAC}/v1",
            "kind": "Role",
            "metadata": metadata(config, name),
            "rules": [
                _rule(API_GROUP, [PLURAL, f"{PLURAL}/status", f"{PLURAL}/scale"], READ_AND_PATCH),
                _rule("ray.io", ["rayclusters", "rayservices"], READ_AND_PATCH),
                _rule("policy", ["poddisruptionbudgets"], ["get", "patch"]),
                _rule("", ["events"], ["create"]),
                _rule("coordination.k8s.io", ["leases"], ["get", "create", "update"]),
            ],
        },
        {
            "apiVersion": f"{RBAC}/v1",
            "kind": "RoleBinding",
            "metadata": metadata(config, name),
            "roleRef": {"apiGroup": RBAC, "kind": "Role", "name": name},
            "subjects": [{"kind": "ServiceAccount", "name": name, "namespace": config.kubernetes.namespace}],
        },
    ]


def disruption_budgets(config: Config) -> list[Object]:
    """Of each group `staying` pods, which the operator keeps in step with a Pool's bounds.

    As numbers: Kubernetes counts `maxUnavailable` and shares by the scale of what owns the pods. A RayCluster
    has none, and a budget that cannot be counted lets no pod go.
    """
    smallest = {GATEWAY: config.gateway.replicas}
    smallest |= {name: getattr(config.pools, name).min_replicas for name in POOLS}
    return [
        {
            "apiVersion": "policy/v1",
            "kind": "PodDisruptionBudget",
            "metadata": metadata(config, budget_name(config.kubernetes.name, group)),
            "spec": {
                "minAvailable": staying(smallest[group]),
                # Else a pod that is not ready could never be evicted where none has to stay.
                "unhealthyPodEvictionPolicy": "AlwaysAllow",
                "selector": pods(config, **{GROUP_LABEL: group}),
            },
        }
        for group in GROUPS
    ]


def staying(least: int) -> int:
    """Pods of a group that stay while nodes are drained: all but one of the fewest.

    Of a group that may be of one pod none has to, or its node could never be drained.
    """
    return max(0, least - 1)


def _rule(group: str, resources: list[str], verbs: list[str]) -> Object:
    return {"apiGroups": [group], "resources": resources, "verbs": list(verbs)}
