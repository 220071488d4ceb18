"""The RayService: head, gateways and the two pools as worker groups, and the Serve application."""

from __future__ import annotations

import json

from cluster.config import Config, PoolConfig
from cluster.config_kubernetes import RAY_VERSION
from k8s.objects.names import GATEWAY, POOLS, metadata
from k8s.objects.pod import head_template, security, worker_template
from k8s.serve_settings import serve_config
from k8s.yaml_text import Object, dump

API_VERSION = "ray.io/v1"
IDLE_SECONDS = 120
"""How long a pod without an instance stays before the autoscaler takes it."""


def ray_service(config: Config) -> Object:
    """`config` is one that `in_cluster` gave."""
    return {
        "apiVersion": API_VERSION,
        "kind": "RayService",
        "metadata": metadata(
            config, config.kubernetes.name, annotations={"ray.io/initializing-timeout": "30m"}
        ),
        "spec": {
            "upgradeStrategy": {"type": "NewCluster"},
            "serveConfigV2": dump(serve_config(config)),
            "rayClusterConfig": _cluster(config),
        },
    }


def _cluster(config: Config) -> Object:
    return {
        "rayVersion": RAY_VERSION,
        "authOptions": {"mode": "token"},
        "enableInTreeAutoscaling": True,
        "autoscalerOptions": {
            "version": "v2",
            "idleTimeoutSeconds": IDLE_SECONDS,
            "upscalingMode": "Default",
            "securityContext": security(),
            "resources": {
                "requests": {"cpu": "200m", "memory": "512Mi"},
                "limits": {"cpu": "500m", "memory": "512Mi"},
            },
        },
        "headGroupSpec": {
            "rayStartParams": {
                "dashboard-host": "0.0.0.0",
                "num-cpus": "0",
                "num-gpus": "0",
                "resources": _quoted(config.control.resources),
            },
            "template": head_template(config),
        },
        "workerGroupSpecs": [_gateways(config), *(_pool(config, name) for name in POOLS)],
    }


def _gateways(config: Config) -> Object:
    """Their number is the Serve application's, so the autoscaler leaves it alone."""
    replicas = config.gateway.replicas
    return _group(config, GATEWAY, config.gateway.resources, replicas, (replicas, replicas))


def _pool(config: Config, name: str) -> Object:
    pool: PoolConfig = getattr(config.pools, name)
    return _group(config, name, pool.resources, pool.replicas, (pool.min_replicas, pool.max_replicas))


def _group(
    config: Config, name: str, resources: dict[str, float], replicas: int, bounds: tuple[int, int]
) -> Object:
    return {
        "groupName": name,
        "replicas": replicas,
        "minReplicas": bounds[0],
        "maxReplicas": bounds[1],
        "resources": {key: f"{value:g}" for key, value in resources.items() if key not in ("CPU", "GPU")},
        "template": worker_template(config, name),
    }


def _quoted(resources: dict[str, float]) -> str:
    """A resource mapping as `ray start` takes it in rayStartParams: JSON inside a quoted shell word."""
    plain = {key: int(value) if float(value).is_integer() else value for key, value in resources.items()}
    return json.dumps(json.dumps(plain))
