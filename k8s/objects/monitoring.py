"""What Prometheus scrapes and when it calls for help (kinds of the Prometheus operator)."""

from __future__ import annotations

from cluster.config import Config
from k8s.objects import secret_files
from k8s.objects.names import (
    CLUSTER_LABEL,
    GATEWAY,
    GROUP_LABEL,
    HEAD,
    METRICS_TOKEN_KEY,
    NODE_TYPE_LABEL,
    SECRET,
    metadata,
    pods,
)
from k8s.yaml_text import Object

API_VERSION = "monitoring.coreos.com/v1"


def pod_monitors(config: Config) -> list[Object]:
    """Ray's own metrics by node type, and tandem's at the gateways."""
    name = config.kubernetes.name
    return [
        _monitor(
            config,
            f"{name}-head",
            {NODE_TYPE_LABEL: HEAD},
            [_endpoint(port) for port in ("metrics", "as-metrics", "dash-metrics")],
        ),
        _monitor(config, f"{name}-worker", {NODE_TYPE_LABEL: "worker"}, [_endpoint("metrics")]),
        # honorLabels: the gateway names an engine's instance, which is not the pod that was scraped.
        _monitor(
            config,
            f"{name}-gateway",
            {GROUP_LABEL: GATEWAY},
            [{**_endpoint("http"), **_gateway(config)}],
        ),
    ]


def _gateway(config: Config) -> Object:
    """A gateway is asked by its pod's address, which is not the name in its certificate."""
    plain: Object = {"path": "/metrics", "honorLabels": True, "authorization": _token()}
    if secret_files.gateway_scheme(config) == "http":
        return plain
    return {**plain, "scheme": "https", "tlsConfig": {"insecureSkipVerify": True}}


def _token() -> Object:
    """Where clients need keys, Prometheus shows a token that opens nothing else."""
    return {"type": "Bearer", "credentials": {"name": SECRET, "key": METRICS_TOKEN_KEY}}


def prometheus_rule(config: Config) -> Object:
    return {
        "apiVersion": API_VERSION,
        "kind": "PrometheusRule",
        "metadata": metadata(config, config.kubernetes.name),
        "spec": {"groups": [{"name": "tandem", "rules": alerts(config.kubernetes.namespace)}]},
    }


def alerts(namespace: str) -> list[Object]:
    """Of the tandem in one namespace: others may be in the same Prometheus, which names each pod's.

    Every gateway exposes all instances and pools, hence `max by` over what it only repeats.
    """
    here = f'namespace="{namespace}"'
    found = [*_presence(here), *_service(here), *_movements(here)]
    return [{**each, "labels": {"namespace": namespace, **each["labels"]}} for each in found]


def _presence(here: str) -> list[Object]:
    """Whether there is anything that serves; all other alerts are silent when there is nothing."""
    ready = f'max by (pool) (tandem_pool_replicas{{{here},state="ready"}})'
    target = f"max by (pool) (tandem_pool_target_replicas{{{here}}})"
    return [
        _alert(
            "TandemAbsent",
            f"absent(tandem_pool_replicas{{{here}}})",
            "2m",
            "critical",
            "No gateway in the namespace {{ $labels.namespace }} tells of its pools: all are gone, or none "
            "is scraped.",
        ),
        _alert(
            "TandemNoReadyInstance",
            f"{ready} == 0 and {target} > 0",
            "1m",
            "critical",
            "The pool {{ $labels.pool }} has no ready instance: requests wait or are refused.",
        ),
        _alert(
            "TandemPoolNotAtTarget",
            f"{ready} != {target}",
            "10m",
            "warning",
            "The pool {{ $labels.pool }} has {{ $value }} ready instances, which is not its target.",
        ),
    ]


def _service(here: str) -> list[Object]:
    """What clients see."""
    early = f'sum(rate(tandem_ttft_seconds_bucket{{{here},le="2.5"}}[5m]))'
    failed = f'sum(rate(tandem_requests_total{{{here},code=~"5.."}}[5m]))'
    return [
        _alert(
            "TandemSlowFirstToken",
            f"{early} / sum(rate(tandem_ttft_seconds_count{{{here}}}[5m])) < 0.9",
            "5m",
            "warning",
            "Only {{ $value | humanizePercentage }} of requests get their first token within 2.5 s.",
        ),
        _alert(
            "TandemErrors",
            f"{failed} / sum(rate(tandem_requests_total{{{here}}}[5m])) > 0.02",
            "5m",
            "critical",
            "{{ $value | humanizePercentage }} of requests fail.",
        ),
        _alert(
            "TandemRejections",
            f"sum by (reason) (rate(tandem_rejections_total{{{here}}}[5m])) > 0.1",
            "5m",
            "warning",
            "{{ $value | humanize }} requests a second are turned away: {{ $labels.reason }}.",
        ),
        _alert(
            "TandemObjectivesMissed",
            f"min(tandem_goodput_ratio{{{here}}}) < 0.9",
            "5m",
            "warning",
            "Only {{ $value | humanizePercentage }} of requests meet both objectives.",
        ),
    ]


def _movements(here: str) -> list[Object]:
    """What goes on between instances, and how much room they have for it."""
    return [
        _alert(
            "TandemTransferFailures",
            f"max by (instance) (rate(tandem_kv_transfer_failures_total{{{here}}}[5m])) > 0.02",
            "5m",
            "warning",
            "Handoffs from {{ $labels.instance }} fail and are decoded where they were prefilled.",
        ),
        _alert(
            "TandemLeasesExpire",
            f"max by (instance) (increase(tandem_lease_expirations_total{{{here}}}[15m])) > 0",
            "1m",
            "warning",
            "Movements to {{ $labels.instance }} fall silent: look at its links and at who sends to it.",
        ),
        _alert(
            "TandemKVNearlyFull",
            f"max by (engine) (vllm:kv_cache_usage_perc{{{here}}}) > 0.95",
            "5m",
            "warning",
            "The KV cache of {{ $labels.engine }} is {{ $value | humanizePercentage }} full.",
        ),
        _alert(
            "TandemMigrationsAbort",
            f'max by (reason) (rate(tandem_migrations_total{{{here},outcome="aborted"}}[15m])) > 0.05',
            "10m",
            "warning",
            "Migrations keep being given up: {{ $labels.reason }}.",
        ),
        _alert(
            "TandemResumes",
            f"sum by (cause) (rate(tandem_resumes_total{{{here}}}[15m])) > 0.05",
            "10m",
            "warning",
            "Requests keep being resumed elsewhere: {{ $labels.cause }}.",
        ),
    ]


def _monitor(config: Config, name: str, labels: Object, endpoints: list[Object]) -> Object:
    return {
        "apiVersion": API_VERSION,
        "kind": "PodMonitor",
        "metadata": metadata(config, name),
        "spec": {
            "selector": pods(config, **labels),
            "podTargetLabels": [CLUSTER_LABEL, GROUP_LABEL],
            "podMetricsEndpoints": endpoints,
        },
    }


def _endpoint(port: str) -> Object:
    relabel = {
        "sourceLabels": ["__meta_kubernetes_pod_label_ray_io_cluster"],
        "targetLabel": "ray_io_cluster",
    }
    return {"port": port, "relabelings": [relabel]}


def _alert(name: str, expression: str, wait: str, severity: str, summary: str) -> Object:
    return {
        "alert": name,
        "expr": expression,
        "for": wait,
        "labels": {"severity": severity},
        "annotations": {"summary": summary},
    }
