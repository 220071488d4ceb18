"""Who may talk to whom: the gateways' Service, and policies that close everything else."""

from __future__ import annotations

from urllib.parse import urlsplit

from cluster.config import Config
from engine.errors import ConfigError
from k8s.objects import secret_files
from k8s.objects.names import (
    CLUSTER_LABEL,
    DASHBOARD_PORT,
    GATEWAY,
    GROUP_LABEL,
    HEAD,
    METRICS_PORT,
    NODE_TYPE_LABEL,
    SERVE_PORT,
    gateway_service,
    metadata,
    operator_name,
    pods,
)
from k8s.yaml_text import Object

API_SERVER_PORTS = (443, 6443)
NAMESPACE_LABEL = "kubernetes.io/metadata.name"
USUAL_PORTS = {"http": 80, "https": 443}


def service(config: Config) -> Object:
    """Clients come in here, at gateways that are ready; Serve's own Service is not used."""
    scheme = secret_files.gateway_scheme(config)
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": metadata(config, gateway_service(config)),
        "spec": {
            "type": "ClusterIP",
            "selector": {CLUSTER_LABEL: config.kubernetes.name, GROUP_LABEL: GATEWAY},
            "ports": [{"name": scheme, "port": USUAL_PORTS[scheme], "targetPort": "http", "protocol": "TCP"}],
        },
    }


def policies(config: Config) -> list[Object]:
    """Raises ConfigError if `observe.traces` is no URL."""
    traces = [] if config.observe.traces is None else [_traces(config, config.observe.traces)]
    return [_cluster(config), _clients(config), _autoscaler(config), _operator(config), *traces]


def policy(config: Config, name: str, selector: Object, **rules: list[Object]) -> Object:
    """A NetworkPolicy; a direction whose rules are given is closed to all others."""
    return {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": metadata(config, name),
        "spec": {
            "podSelector": selector,
            "policyTypes": [direction.capitalize() for direction in rules],
            **rules,
        },
    }


def ports(*numbers: int, protocol: str = "TCP") -> list[Object]:
    return [{"port": number, "protocol": protocol} for number in numbers]


def _cluster(config: Config) -> Object:
    """Ray's pods among themselves: Ray draws ports for its workers, instances theirs for KV and tokens."""
    itself = {"podSelector": pods(config)}
    settings = config.kubernetes
    return policy(
        config,
        settings.name,
        pods(config),
        ingress=[
            {"from": [itself]},
            {"from": [_namespace(settings.kuberay_namespace)], "ports": ports(DASHBOARD_PORT, SERVE_PORT)},
            {
                "from": [_namespace(settings.monitoring_namespace)],
                "ports": ports(METRICS_PORT, 44217, 44227, config.gateway.port),
            },
            {
                "from": [{"podSelector": _operator_pods(config)}],
                "ports": ports(config.control.port),
            },
        ],
        egress=[{"to": [itself]}, _dns()],
    )


def _clients(config: Config) -> Object:
    """Everybody in the cluster may ask the gateways, which ask for a key."""
    return policy(
        config,
        gateway_service(config),
        pods(config, **{GROUP_LABEL: GATEWAY}),
        ingress=[{"ports": ports(config.gateway.port)}],
    )


def _traces(config: Config, url: str) -> Object:
    """Gateways send traces to the collector, wherever it is."""
    try:
        parts = urlsplit(url)
        port = parts.port or USUAL_PORTS[parts.scheme]
    except (KeyError, ValueError):
        setting = "observe.traces"
        raise ConfigError(f"{setting}: {url} is no URL of http or https", param=setting) from None
    return policy(
        config,
        f"{config.kubernetes.name}-traces",
        pods(config, **{GROUP_LABEL: GATEWAY}),
        egress=[{"ports": ports(port)}],
    )


def _autoscaler(config: Config) -> Object:
    """Ray's autoscaler, in the head's pod, asks Kubernetes for pods."""
    return policy(
        config,
        f"{config.kubernetes.name}-autoscaler",
        pods(config, **{NODE_TYPE_LABEL: HEAD}),
        egress=[{"ports": ports(*API_SERVER_PORTS)}],
    )


def _operator(config: Config) -> Object:
    """tandem's operator talks to Kubernetes and to the controller, and nobody to it."""
    head = {"podSelector": pods(config, **{NODE_TYPE_LABEL: HEAD})}
    return policy(
        config,
        operator_name(config),
        _operator_pods(config),
        ingress=[],
        egress=[
            {"to": [head], "ports": ports(config.control.port)},
            {"ports": ports(*API_SERVER_PORTS)},
            _dns(),
        ],
    )


def _operator_pods(config: Config) -> Object:
    return {"matchLabels": {"app.kubernetes.io/name": operator_name(config)}}


def _namespace(name: str) -> Object:
    return {"namespaceSelector": {"matchLabels": {NAMESPACE_LABEL: name}}}


def _dns() -> Object:
    return {
        "to": [_namespace("kube-system")],
        "ports": [*ports(53, protocol="UDP"), *ports(53)],
    }
