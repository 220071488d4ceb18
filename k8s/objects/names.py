"""Names, ports and labels that several manifests must agree on."""

from __future__ import annotations

from cluster.config import Config
from k8s.yaml_text import Object

POOLS = ("prefill", "decode")
GATEWAY = "gateway"
HEAD = "head"
REDIS_CLEANUP = "redis-cleanup"
GROUPS = (GATEWAY, *POOLS)

DASHBOARD_PORT = 8265
AGENT_PORT = 52365
METRICS_PORT = 8080
SERVE_PORT = 8000
CONTROL_PORT = 8002

MODELS = "/models"
CACHE = "/var/cache/tandem"

SECRET = "tandem-secrets"
"""Holds `control-token`, `api-keys`, `metrics-token` and, if one is chosen, `admin-token`; made by hand, see
docs/kubernetes.md."""
CONTROL_TOKEN_KEY = "control-token"
API_KEYS_KEY = "api-keys"
METRICS_TOKEN_KEY = "metrics-token"
ADMIN_TOKEN_KEY = "admin-token"

CLUSTER_LABEL = "tandem.dev/cluster"
GROUP_LABEL = "ray.io/group"
NODE_TYPE_LABEL = "ray.io/node-type"

ALIVE = "/tmp/tandem-operator-alive"
"""The operator touches it in every round, and Kubernetes looks how old it is."""

API_GROUP = "tandem.dev"
API_VERSION = "v1alpha1"
PLURAL = "pools"


def metadata(config: Config, name: str, **more: Object) -> Object:
    """Name, namespace and the labels of everything that belongs to one tandem."""
    return {
        "name": name,
        "namespace": config.kubernetes.namespace,
        "labels": {"app.kubernetes.io/part-of": "tandem", CLUSTER_LABEL: config.kubernetes.name},
        **more,
    }


def pods(config: Config, **labels: str) -> Object:
    """A selector of this tandem's Ray pods; KubeRay itself sets the labels ray.io/*."""
    return {"matchLabels": {CLUSTER_LABEL: config.kubernetes.name, **labels}}


def gateway_service(config: Config) -> str:
    return f"{config.kubernetes.name}-gateway"


def head_service(config: Config) -> str:
    """The Service that KubeRay keeps in front of the active cluster's head; an upgrade makes it another's."""
    return f"{config.kubernetes.name}-head-svc"


def budget_name(cluster: str, group: str) -> str:
    return f"{cluster}-{group}"


def operator_name(config: Config) -> str:
    return f"{config.kubernetes.name}-operator"
