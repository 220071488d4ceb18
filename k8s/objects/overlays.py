"""The overlays: what each changes in the base, as Kustomize's patches.

cpu-dev              small pods without GPUs, for a cluster on one machine; no Prometheus operator needed
gpu                  a GPU in every pod of both pools
ha-redis             Ray's state in a Redis: the cluster outlives the death of its head
mtls                 TLS with certificates on both sides, between Ray's processes and on tandem's own ports
incremental-upgrade  a new cluster takes the traffic over in steps, through a Gateway of the Gateway API
"""

from __future__ import annotations

import json

from cluster.config import Config
from k8s.objects.certificates import certificates, shown
from k8s.objects.monitoring import pod_monitors, prometheus_rule
from k8s.objects.names import (
    GATEWAY,
    GROUPS,
    HEAD,
    NODE_TYPE_LABEL,
    POOLS,
    REDIS_CLEANUP,
    SECRET,
    operator_name,
    pods,
)
from k8s.objects.network import policy, ports
from k8s.objects.pod import GPU, gpu_toleration, may_have_gpus
from k8s.objects.rayservice import API_VERSION
from k8s.yaml_text import Object, dump, dump_all

REDIS_KEY = "redis-password"
MERGE_KEYS = {
    "workerGroupSpecs": "groupName",
    "containers": "name",
    "env": "name",
    "volumeMounts": "mountPath",
    "volumes": "name",
}

Files = dict[str, str]


def overlays(config: Config) -> dict[str, Files]:
    """The files of every overlay by its name; none with GPUs for a model that cannot be on one."""
    return {
        "cpu-dev": _cpu_dev(config),
        **({"gpu": _gpu(config)} if may_have_gpus(config) else {}),
        "ha-redis": _ha_redis(config),
        "mtls": _mtls(config),
        "incremental-upgrade": _incremental_upgrade(config),
    }


def merge_schema() -> str:
    """Tells Kustomize which lists merge by which field; else a patch of one entry replaces all."""

    def listed(field: str, items: Object) -> Object:
        return {
            "type": "array",
            "items": items,
            "x-kubernetes-patch-merge-key": MERGE_KEYS[field],
            "x-kubernetes-patch-strategy": "merge",
        }

    def within(*path: str, leaf: Object) -> Object:
        for step in reversed(path):
            leaf = {"type": "object", "properties": {step: leaf}}
        return leaf

    lists = {field: listed(field, {"type": "object"}) for field in ("env", "volumeMounts")}
    containers = listed("containers", {"type": "object", "properties": lists})
    pod = {"containers": containers, "volumes": listed("volumes", {"type": "object"})}
    template = within("spec", leaf={"type": "object", "properties": pod})
    groups = listed("workerGroupSpecs", within("template", leaf=template))
    head = within("template", leaf=template)
    cluster = {"type": "object", "properties": {"workerGroupSpecs": groups, "headGroupSpec": head}}
    service = within("spec", "rayClusterConfig", leaf=cluster)
    # With a schema of one's own Kustomize knows no other kind any more.
    deployment = within("spec", "template", leaf=template)
    for kind, api, found in (("RayService", API_VERSION, service), ("Deployment", "apps/v1", deployment)):
        group, version = api.split("/")
        found["x-kubernetes-group-version-kind"] = [{"group": group, "version": version, "kind": kind}]
    definitions = {"io.ray.v1.RayService": service, "io.k8s.api.apps.v1.Deployment": deployment}
    return json.dumps({"definitions": definitions}, indent=2) + "\n"


def _cpu_dev(config: Config) -> Files:
    small = {"cpu": "1", "memory": "2Gi"}
    sizes = {"resources": {"requests": small, "limits": small}}
    head = {"template": {"spec": {"containers": [{"name": "ray-head", **sizes}]}}}
    groups = [_group(group, {"containers": [{"name": "ray-worker", **sizes}]}) for group in GROUPS]
    patch = _patch(config, {"rayClusterConfig": {"headGroupSpec": head, "workerGroupSpecs": groups}})
    # One patch for each: Kustomize 5.5 crashes on a file with several deletions.
    unwanted = {
        f"{each['metadata']['name']}-{each['kind'].lower()}.yaml": dump(_deletion(each))
        for each in (*pod_monitors(config), prometheus_rule(config))
    }
    return _overlay({"rayservice.yaml": dump(patch), **unwanted})


def _gpu(config: Config) -> Files:
    groups = []
    for pool in POOLS:
        count = str(getattr(config.kubernetes.pods, pool).gpus or 1)
        amounts = {"limits": {GPU: count}, "requests": {GPU: count}}
        container = {"name": "ray-worker", "resources": amounts}
        groups.append(_group(pool, {"containers": [container], "tolerations": [gpu_toleration()]}))
    patch = _patch(config, {"rayClusterConfig": {"workerGroupSpecs": groups}})
    return _overlay({"rayservice.yaml": dump(patch)})


def _ha_redis(config: Config) -> Files:
    address = config.kubernetes.redis_address
    secret = {"secretKeyRef": {"name": SECRET, "key": REDIS_KEY}}
    options = {"redisAddress": address, "redisPassword": {"valueFrom": secret}}
    patch = _patch(config, {"rayClusterConfig": {"gcsFaultToleranceOptions": options}})
    # KubeRay empties the Redis of a cluster that is deleted by a Job, whose pod is of a type of its own.
    kept = {"key": NODE_TYPE_LABEL, "operator": "In", "values": [HEAD, REDIS_CLEANUP]}
    egress = policy(
        config,
        f"{config.kubernetes.name}-redis",
        {**pods(config), "matchExpressions": [kept]},
        egress=[{"ports": ports(int(address.rpartition(":")[2]))}],
    )
    return _overlay({"rayservice.yaml": dump(patch)}, {"networkpolicy.yaml": dump(egress)})


def _mtls(config: Config) -> Files:
    groups = [_group(group, shown(config, "ray-worker")) for group in GROUPS]
    cluster = {
        "tlsOptions": {"enabled": True},
        "headGroupSpec": {"template": {"spec": shown(config, "ray-head")}},
        "workerGroupSpecs": groups,
    }
    operator = {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": operator_name(config), "namespace": config.kubernetes.namespace},
        "spec": {"template": {"spec": shown(config, "operator")}},
    }
    patches = {
        "rayservice.yaml": dump(_patch(config, {"rayClusterConfig": cluster})),
        "operator.yaml": dump(operator),
    }
    head = "# Needs KubeRay's alpha feature gate RayClusterMTLS=true, and cert-manager.\n"
    return _overlay(patches, {"certificates.yaml": dump_all(certificates(config))}, comment=head)


def _incremental_upgrade(config: Config) -> Files:
    """Traffic comes through Serve's Service here, so a pod without a proxy or gateway must not be ready."""
    groups = [
        _group(pool, {"containers": [{"name": "ray-worker", "readinessProbe": None}]}) for pool in POOLS
    ]
    strategy = {
        "type": "NewClusterWithIncrementalUpgrade",
        "clusterUpgradeOptions": {
            "gatewayClassName": GATEWAY,
            "maxSurgePercent": 100,
            "stepSizePercent": 20,
            "intervalSeconds": 30,
        },
    }
    spec = {
        "upgradeStrategy": strategy,
        "excludeHeadPodFromServeSvc": True,
        "rayClusterConfig": {"workerGroupSpecs": groups},
    }
    head = (
        "# Needs the Gateway API and a GatewayClass; KubeRay's gate RayServiceIncrementalUpgrade is on "
        "since 1.7.\n"
    )
    return _overlay({"rayservice.yaml": dump(_patch(config, spec))}, comment=head)


def _overlay(patches: Files, resources: Files | None = None, *, comment: str = "") -> Files:
    kustomization = {
        "apiVersion": "kustomize.config.k8s.io/v1beta1",
        "kind": "Kustomization",
        "resources": ["../../base", *(resources or {})],
        "openapi": {"path": "schema.json"},
        "patches": [{"path": name} for name in patches],
    }
    return {
        "kustomization.yaml": comment + dump(kustomization),
        "schema.json": merge_schema(),
        **patches,
        **(resources or {}),
    }


def _patch(config: Config, spec: Object) -> Object:
    meta = {"name": config.kubernetes.name, "namespace": config.kubernetes.namespace}
    return {"apiVersion": API_VERSION, "kind": "RayService", "metadata": meta, "spec": spec}


def _deletion(unwanted: Object) -> Object:
    identity = {key: unwanted["metadata"][key] for key in ("name", "namespace")}
    return {
        "$patch": "delete",
        "apiVersion": unwanted["apiVersion"],
        "kind": unwanted["kind"],
        "metadata": identity,
    }


def _group(name: str, pod: Object) -> Object:
    return {"groupName": name, "template": {"spec": pod}}
