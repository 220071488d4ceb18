"""Grafana dashboards as plain data, and the ConfigMap in which a Grafana in Kubernetes finds them."""

from __future__ import annotations

import json
from dataclasses import dataclass

from cluster.config import Config
from k8s.objects.names import metadata
from k8s.yaml_text import Object

SCHEMA_VERSION = 39
SOURCE = {"type": "prometheus", "uid": "${datasource}"}
WIDTH, HEIGHT, COLUMNS = 8, 8, 3
HERE = 'namespace=~"$namespace"'
MODEL = f'{HERE},model_name="$model_name"'
POOL = f'{HERE},pool=~"$pool"'


@dataclass(frozen=True)
class Panel:
    """A graph: its expressions by legend."""

    title: str
    unit: str
    lines: tuple[tuple[str, str], ...]


def dashboards() -> dict[str, Object]:
    """By file name."""
    return {
        "tandem-overview.json": _dashboard("tandem-overview", "tandem: requests", _requests()),
        "tandem-instances.json": _dashboard("tandem-instances", "tandem: pools and instances", _instances()),
    }


def text(dashboard: Object) -> str:
    return json.dumps(dashboard, indent=2, ensure_ascii=False) + "\n"


def config_map(config: Config) -> Object:
    meta = metadata(config, f"{config.kubernetes.name}-dashboards")
    meta["labels"]["grafana_dashboard"] = "1"
    data = {name: text(dashboard) for name, dashboard in dashboards().items()}
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": meta, "data": data}


def provisioning() -> dict[str, Object]:
    """The two files that tell a Grafana outside Kubernetes of Prometheus and of the dashboards."""
    source = {"name": "Prometheus", "type": "prometheus", "url": "http://127.0.0.1:9090", "isDefault": True}
    provider = {"name": "tandem", "type": "file", "options": {"path": "/var/lib/grafana/dashboards/tandem"}}
    return {
        "datasources/tandem.yaml": {"apiVersion": 1, "datasources": [source]},
        "dashboards/tandem.yaml": {"apiVersion": 1, "providers": [provider]},
    }


def expressions() -> list[str]:
    """Every expression of every panel."""
    return [line for panel in (*_requests(), *_instances()) for _, line in panel.lines]


def _quantiles(histogram: str) -> tuple[tuple[str, str], ...]:
    buckets = f"sum by (le) (rate({histogram}_bucket{{{HERE}}}[$__rate_interval]))"
    return tuple((f"p{q}", f"histogram_quantile({q / 100:g}, {buckets})") for q in (50, 95, 99))


def _rate(metric: str, by: str) -> str:
    return f"sum by ({by}) (rate({metric}{{{HERE}}}[$__rate_interval]))"


def _most(metric: str, by: str) -> str:
    """A rate of what every gateway repeats."""
    return f"max by ({by}) (rate({metric}{{{HERE}}}[$__rate_interval]))"


def _last(metric: str, by: str) -> str:
    """A value that every gateway repeats."""
    return f"max by ({by}) ({metric}{{{HERE}}})"


def _requests() -> tuple[Panel, ...]:
    tokens = f"{{{MODEL}}}"
    within = f'sum(rate(tandem_ttft_seconds_bucket{{{HERE},le="2.5"}}[$__rate_interval]))'
    return (
        Panel("Requests", "reqps", (("{{code}}", _rate("tandem_requests_total", "code")),)),
        Panel(
            "Tokens",
            "short",
            (
                ("prompt", f"sum(rate(vllm:prompt_tokens_total{tokens}[$__rate_interval]))"),
                ("generated", f"sum(rate(vllm:generation_tokens_total{tokens}[$__rate_interval]))"),
            ),
        ),
        Panel("Turned away", "reqps", (("{{reason}}", _rate("tandem_rejections_total", "reason")),)),
        Panel("Time to first token", "s", _quantiles("tandem_ttft_seconds")),
        Panel("Time between tokens", "s", _quantiles("tandem_itl_seconds")),
        Panel("Time per output token", "s", _quantiles("tandem_tpot_seconds")),
        Panel("End to end", "s", _quantiles("tandem_e2e_seconds")),
        Panel("Queue", "s", _quantiles("tandem_queue_seconds")),
        Panel(
            "First token within 2.5 s",
            "percentunit",
            (("share", f"{within} / sum(rate(tandem_ttft_seconds_count{{{HERE}}}[$__rate_interval]))"),),
        ),
        Panel(
            "Where prompts were read",
            "reqps",
            (("{{type}}", _rate("tandem_disagg_decisions_total", "type")),),
        ),
        Panel("Tenants", "reqps", (("{{tenant}}", _rate("tandem_requests_total", "tenant")),)),
        Panel(
            "Objectives met",
            "percentunit",
            (
                ("{{slo}}", f"avg by (slo) (tandem_slo_attainment_ratio{{{HERE}}})"),
                ("both", f"avg(tandem_goodput_ratio{{{HERE}}})"),
            ),
        ),
        Panel("Time to place", "s", _quantiles("tandem_sched_decision_seconds")),
        Panel(
            "Service by tenant",
            "short",
            (("{{tenant}}", f"sum by (tenant) (tandem_fairness_service_tokens{{{HERE}}})"),),
        ),
        Panel("Resumed elsewhere", "reqps", (("{{cause}}", _rate("tandem_resumes_total", "cause")),)),
    )


def _instances() -> tuple[Panel, ...]:
    return (
        Panel(
            "Pools",
            "short",
            (
                ("{{pool}} {{state}}", f"max by (pool, state) (tandem_pool_replicas{{{POOL}}})"),
                ("{{pool}} target", f"max by (pool) (tandem_pool_target_replicas{{{POOL}}})"),
                ("{{pool}} wished", f"max by (pool) (tandem_planner_target_replicas{{{POOL}}})"),
            ),
        ),
        Panel(
            "Roles",
            "short",
            (("{{role}}", f"count by (role) ({_last('tandem_instance_role_info', 'role, instance')})"),),
        ),
        Panel(
            "KV in use",
            "percentunit",
            (("{{engine}}", f"max by (engine) (vllm:kv_cache_usage_perc{{{MODEL}}})"),),
        ),
        Panel(
            "Running", "short", (("{{engine}}", f"max by (engine) (vllm:num_requests_running{{{MODEL}}})"),)
        ),
        Panel(
            "Waiting", "short", (("{{engine}}", f"max by (engine) (vllm:num_requests_waiting{{{MODEL}}})"),)
        ),
        Panel(
            "KV blocks", "short", (("{{instance}} {{state}}", _last("tandem_kv_blocks", "instance, state")),)
        ),
        Panel(
            "Prefix hits", "percentunit", (("{{instance}}", _last("tandem_prefix_hit_ratio", "instance")),)
        ),
        Panel(
            "Movements that failed",
            "ops",
            (("{{instance}} {{reason}}", _most("tandem_kv_transfer_failures_total", "instance, reason")),),
        ),
        Panel(
            "KV sent",
            "Bps",
            (
                (
                    "{{backend}}: {{src}} → {{dst}}",
                    _most("tandem_kv_transfer_bytes_total", "backend, src, dst"),
                ),
            ),
        ),
        Panel("Time of a movement", "s", _quantiles("tandem_kv_transfer_seconds")),
        Panel(
            "Migrations",
            "ops",
            (("{{reason}} {{outcome}}", _most("tandem_migrations_total", "reason, outcome")),),
        ),
        Panel("Pause of a migration", "s", _quantiles("tandem_migration_downtime_seconds")),
        Panel("Freeness", "short", (("{{instance}}", _last("tandem_freeness", "instance")),)),
        Panel(
            "Preemptions",
            "ops",
            (
                (
                    "{{engine}}",
                    f"max by (engine) (rate(vllm:num_preemptions_total{{{MODEL}}}[$__rate_interval]))",
                ),
            ),
        ),
    )


def _dashboard(uid: str, title: str, panels: tuple[Panel, ...]) -> Object:
    return {
        "uid": uid,
        "title": title,
        "tags": ["tandem"],
        "schemaVersion": SCHEMA_VERSION,
        "version": 1,
        "editable": True,
        "refresh": "10s",
        "time": {"from": "now-30m", "to": "now"},
        "templating": {"list": _variables()},
        "panels": [_panel(number, panel) for number, panel in enumerate(panels)],
    }


def _variables() -> list[Object]:
    def query(name: str, text: str, *, several: bool, **more: str) -> Object:
        every = {"multi": True, "includeAll": True, "current": {"text": ["All"], "value": ["$__all"]}}
        return {
            "name": name,
            "type": "query",
            "datasource": SOURCE,
            "query": {"query": text, "refId": name},
            "refresh": 2,
            **(every if several else {}),
            **more,
        }

    return [
        {"name": "datasource", "type": "datasource", "query": "prometheus"},
        # Outside of Kubernetes there is no such label: all of them are also those without one.
        query("namespace", "label_values(tandem_pool_replicas, namespace)", several=True, allValue=".*"),
        query("model_name", f"label_values(vllm:num_requests_running{{{HERE}}}, model_name)", several=False),
        query("pool", f"label_values(tandem_pool_replicas{{{HERE}}}, pool)", several=True),
    ]


def _panel(number: int, panel: Panel) -> Object:
    row, column = divmod(number, COLUMNS)
    targets = [
        {"refId": chr(ord("A") + index), "datasource": SOURCE, "expr": expression, "legendFormat": legend}
        for index, (legend, expression) in enumerate(panel.lines)
    ]
    return {
        "id": number + 1,
        "type": "timeseries",
        "title": panel.title,
        "datasource": SOURCE,
        "gridPos": {"x": column * WIDTH, "y": row * HEIGHT, "w": WIDTH, "h": HEIGHT},
        "fieldConfig": {"defaults": {"unit": panel.unit, "min": 0}, "overrides": []},
        "targets": targets,
    }
