"""The resource Pool: its definition, one object for each pool, and the operator that acts on them."""

from __future__ import annotations

from cluster.config import Config, PoolConfig
from k8s.objects.names import (
    ALIVE,
    API_GROUP,
    API_VERSION,
    CONTROL_TOKEN_KEY,
    PLURAL,
    POOLS,
    SECRET,
    head_service,
    metadata,
    operator_name,
)
from k8s.objects.pod import security
from k8s.yaml_text import Object

KIND = "Pool"
SECRETS = "/var/run/secrets/tandem"
OWN_NAMESPACE = "POD_NAMESPACE"
SILENT_MINUTES = 3
"""After so many without a round the operator is taken for hung; each of its calls is bounded by seconds."""


def definition() -> Object:
    """The CustomResourceDefinition, the same for every tandem."""
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": f"{PLURAL}.{API_GROUP}", "labels": {"app.kubernetes.io/part-of": "tandem"}},
        "spec": {
            "group": API_GROUP,
            "scope": "Namespaced",
            "names": {
                "kind": KIND,
                "listKind": f"{KIND}List",
                "plural": PLURAL,
                "singular": "pool",
                "shortNames": ["tpool"],
            },
            "versions": [
                {
                    "name": API_VERSION,
                    "served": True,
                    "storage": True,
                    "subresources": {
                        "status": {},
                        "scale": {
                            "specReplicasPath": ".spec.replicas",
                            "statusReplicasPath": ".status.replicas",
                            "labelSelectorPath": ".status.selector",
                        },
                    },
                    "additionalPrinterColumns": [
                        _column("Role", "string", ".spec.role"),
                        _column("Desired", "integer", ".spec.replicas"),
                        _column("Ready", "integer", ".status.readyReplicas"),
                        _column("Age", "date", ".metadata.creationTimestamp"),
                    ],
                    "schema": {"openAPIV3Schema": schema()},
                }
            ],
        },
    }


def schema() -> Object:
    """The schema of a Pool."""
    return {
        "type": "object",
        "description": "A pool of instances of a tandem on Ray.",
        "required": ["spec"],
        "properties": {
            "apiVersion": {"type": "string"},
            "kind": {"type": "string"},
            "metadata": {"type": "object"},
            "spec": _spec(),
            "status": _status(),
        },
    }


def pools(config: Config) -> list[Object]:
    return [_pool(config, name) for name in POOLS]


def operator(config: Config) -> Object:
    """The Deployment of the reconciler. A second replica waits for the first one's lease."""
    name = operator_name(config)
    labels = {"app.kubernetes.io/name": name, "app.kubernetes.io/part-of": "tandem"}
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": metadata(config, name),
        "spec": {
            "replicas": 1,
            "selector": {"matchLabels": {"app.kubernetes.io/name": name}},
            "template": {
                "metadata": {"labels": labels},
                "spec": {
                    "serviceAccountName": name,
                    "automountServiceAccountToken": True,
                    "terminationGracePeriodSeconds": 10,
                    "containers": [_operator_container(config)],
                    "volumes": [_token_volume()],
                },
            },
        },
    }


def _operator_container(config: Config) -> Object:
    settings = config.kubernetes
    command = [
        "tandem", "--address", f"{head_service(config)}:{config.control.port}",
        "--token-file", f"{SECRETS}/token",
        "k8s", "operator", "--namespace", f"$({OWN_NAMESPACE})", "--cluster", settings.name,
    ]  # fmt: skip
    # Of the pod itself: Kustomize changes the namespaces of objects, and no word of a command.
    own = {"name": OWN_NAMESPACE, "valueFrom": {"fieldRef": {"fieldPath": "metadata.namespace"}}}
    amounts = {"cpu": "100m", "memory": "256Mi"}
    return {
        "name": "operator",
        "image": settings.image,
        "command": command,
        "env": [own],
        "resources": {"requests": amounts, "limits": dict(amounts)},
        "securityContext": security(),
        "livenessProbe": _goes_on(),
        "volumeMounts": [{"name": "token", "mountPath": SECRETS, "readOnly": True}],
    }


def _goes_on() -> Object:
    """Whether the operator has begun a round in the last minutes, whatever came of it."""
    return {
        "exec": {"command": ["/bin/sh", "-c", f'test -n "$(find {ALIVE} -mmin -{SILENT_MINUTES})"']},
        "initialDelaySeconds": 60,
        "periodSeconds": 30,
        "timeoutSeconds": 5,
        "failureThreshold": 3,
    }


def _token_volume() -> Object:
    items = [{"key": CONTROL_TOKEN_KEY, "path": "token"}]
    return {"name": "token", "secret": {"secretName": SECRET, "items": items}}


def _pool(config: Config, name: str) -> Object:
    """Its bounds are the worker group's. Without `replicas`, applying it again resizes nothing."""
    pool: PoolConfig = getattr(config.pools, name)
    return {
        "apiVersion": f"{API_GROUP}/{API_VERSION}",
        "kind": KIND,
        "metadata": metadata(config, name),
        "spec": {
            "role": name,
            "clusterRef": {"kind": "RayService", "name": config.kubernetes.name},
            "minReplicas": pool.min_replicas,
            "maxReplicas": pool.max_replicas,
        },
    }


def _spec() -> Object:
    return {
        "type": "object",
        "required": ["role", "clusterRef"],
        "properties": {
            "role": {"type": "string", "enum": list(POOLS)},
            "clusterRef": {
                "type": "object",
                "required": ["name"],
                "properties": {
                    "kind": {"type": "string", "enum": ["RayService", "RayCluster"], "default": "RayService"},
                    "name": {"type": "string", "minLength": 1, "maxLength": 53},
                },
            },
            "replicas": {"type": "integer", "minimum": 0, "default": 1},
            "minReplicas": {"type": "integer", "minimum": 0, "default": 1},
            "maxReplicas": {"type": "integer", "minimum": 1, "default": 64},
            "autoscale": {"type": "boolean", "default": True},
        },
    }


def _status() -> Object:
    text, whole = {"type": "string"}, {"type": "integer"}
    condition = {
        "type": "object",
        "required": ["type", "status", "lastTransitionTime", "reason", "message"],
        "properties": {
            "type": text,
            "status": {"type": "string", "enum": ["True", "False", "Unknown"]},
            "observedGeneration": whole,
            "lastTransitionTime": {"type": "string", "format": "date-time"},
            "reason": text,
            "message": text,
        },
    }
    return {
        "type": "object",
        "properties": {
            "replicas": whole,
            "readyReplicas": whole,
            "selector": text,
            "autoscaledReplicas": whole,
            "minReplicas": whole,
            "maxReplicas": whole,
            "observedGeneration": whole,
            "conditions": {"type": "array", "items": condition},
        },
    }


def _column(name: str, kind: str, path: str) -> Object:
    return {"name": name, "type": kind, "jsonPath": path}
