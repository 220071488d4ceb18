"""The paths of the API that the operator uses."""

from __future__ import annotations

from k8s.objects.names import API_GROUP, API_VERSION, PLURAL


def pools(namespace: str) -> str:
    return f"/apis/{API_GROUP}/{API_VERSION}/namespaces/{namespace}/{PLURAL}"


def pool(namespace: str, name: str) -> str:
    return f"{pools(namespace)}/{name}"


def ray(namespace: str, kind: str, name: str) -> str:
    """`kind` is RayService or RayCluster."""
    return f"/apis/ray.io/v1/namespaces/{namespace}/{kind.lower()}s/{name}"


def budgets(namespace: str) -> str:
    return f"/apis/policy/v1/namespaces/{namespace}/poddisruptionbudgets"


def budget(namespace: str, name: str) -> str:
    return f"{budgets(namespace)}/{name}"


def leases(namespace: str) -> str:
    return f"/apis/coordination.k8s.io/v1/namespaces/{namespace}/leases"


def events(namespace: str) -> str:
    return f"/api/v1/namespaces/{namespace}/events"
