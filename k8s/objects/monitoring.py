"""What Prometheus scrapes and when it calls for help (kinds of the Prometheus operator)."""

from __future__ import annotations

from cluster.config import Config
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
            [{**_endpoint("http"), "path": "/metrics", "honorLabels": True, "authorization": _token()}],
        ),
    ]


def _token() -> Object:
    """Where clients need keys, Prometheus shows a token that opens nothing else."""
    return {"type": "Bearer", "credentials": {"name": SECRET, "key": METRICS_TOKEN_KEY}}


def prometheus_rule(config: Config) -> Object:
    return {
        "apiVersion": API_VERSION,
        "kind": "PrometheusRule",
        "metadata": metadata(config, config.kubernetes.name),
        "spec": {"groups": [{"name": "tandem", "rules": alerts()}]},
    }


def alerts() -> list[Object]:
    """Every gateway exposes all instances and pools, hence `max by` over what it only repeats."""
    return [
        _alert(
            "TandemNoReadyInstance",
            'max by (pool) (tandem_pool_replicas{state="ready"}) == 0',
            "1m",
            "critical",
            "The pool {{ $labels.pool }} has no ready instance: requests wait or are refused.",
        ),
        _alert(
            "TandemPoolNotAtTarget",
            'max by (pool) (tandem_pool_replicas{state="ready"})'
            " != max by (pool) (tandem_pool_target_replicas)",
            "10m",
            "warning",
            "The pool {{ $labels.pool }} has {{ $value }} ready instances, which is not its target.",
        ),
        _alert(
            "TandemSlowFirstToken",
            'sum(rate(tandem_ttft_seconds_bucket{le="2.5"}[5m]))'
            " / sum(rate(tandem_ttft_seconds_count[5m])) < 0.9",
            "5m",
            "warning",
            "Only {{ $value | humanizePercentage }} of requests get their first token within 2.5 s.",
        ),
        _alert(
            "TandemErrors",
            'sum(rate(tandem_requests_total{code=~"5.."}[5m])) / sum(rate(tandem_requests_total[5m])) > 0.02',
            "5m",
            "critical",
            "{{ $value | humanizePercentage }} of requests fail.",
        ),
        _alert(
            "TandemRejections",
            "sum by (reason) (rate(tandem_rejections_total[5m])) > 0.1",
            "5m",
            "warning",
            "{{ $value | humanize }} requests a second are turned away: {{ $labels.reason }}.",
        ),
        _alert(
            "TandemTransferFailures",
            "max by (instance) (rate(tandem_kv_transfer_failures_total[5m])) > 0.02",
            "5m",
            "warning",
            "Handoffs from {{ $labels.instance }} fail and are decoded where they were prefilled.",
        ),
        _alert(
            "TandemLeasesExpire",
            "max by (instance) (increase(tandem_lease_expirations_total[15m])) > 0",
            "1m",
            "warning",
            "Movements to {{ $labels.instance }} fall silent: look at its links and at who sends to it.",
        ),
        _alert(
            "TandemKVNearlyFull",
            "max by (engine) (vllm:kv_cache_usage_perc) > 0.95",
            "5m",
            "warning",
            "The KV cache of {{ $labels.engine }} is {{ $value | humanizePercentage }} full.",
        ),
        _alert(
            "TandemObjectivesMissed",
            "min(tandem_goodput_ratio) < 0.9",
            "5m",
            "warning",
            "Only {{ $value | humanizePercentage }} of requests meet both objectives.",
        ),
        _alert(
            "TandemMigrationsAbort",
            'max by (reason) (rate(tandem_migrations_total{outcome="aborted"}[15m])) > 0.05',
            "10m",
            "warning",
            "Migrations keep being given up: {{ $labels.reason }}.",
        ),
        _alert(
            "TandemResumes",
            "sum by (cause) (rate(tandem_resumes_total[15m])) > 0.05",
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
