"""The pod templates of the Ray cluster: image, secrets, probes, the last steps before a pod goes."""

from __future__ import annotations

import math

from cluster.config import Config
from cluster.units import format_quantity
from k8s.objects import secret_files
from k8s.objects.names import (
    ADMIN_TOKEN_KEY,
    AGENT_PORT,
    API_KEYS_KEY,
    CACHE,
    CLUSTER_LABEL,
    CONTROL_TOKEN_KEY,
    DASHBOARD_PORT,
    GATEWAY,
    METRICS_PORT,
    METRICS_TOKEN_KEY,
    MODELS,
    POOLS,
    SECRET,
    SERVE_PORT,
)
from k8s.yaml_text import Object

USER = 1000
"""The user `ray` of the images of Ray."""

LEAVE_MARGIN = 30
"""Seconds a pod has beyond the drain's own limit: for the news to arrive and for Ray to stop."""

HEAD_PORTS = {
    "gcs-server": 6379,
    "dashboard": DASHBOARD_PORT,
    "client": 10001,
    "serve": SERVE_PORT,
    "as-metrics": 44217,
    "dash-metrics": 44227,
}
GPU = "nvidia.com/gpu"
OWN_HEAD = "$FQ_RAY_IP"
"""The head of the pod's own cluster, as KubeRay tells workers. The head's Service of the RayService leads to
the cluster that has the traffic, which is another one while a new cluster takes over."""


def grace(config: Config) -> int:
    """Seconds between the notice that a pod goes and its end."""
    return math.ceil(config.control.drain_timeout) + LEAVE_MARGIN


def head_template(config: Config) -> Object:
    size = config.kubernetes.pods.head
    ports = {**HEAD_PORTS, "metrics": METRICS_PORT, "control": config.control.port}
    if config.admin.port:
        ports["admin"] = config.admin.port
    container = _container(config, "ray-head", _resources(size.cpus, size.memory), ports)
    # When a whole cluster goes, the controller must outlast the pods that drain.
    container["lifecycle"] = _before_the_end(f"sleep {math.ceil(config.control.drain_timeout)}")
    template = _template(config, container)
    template["spec"]["terminationGracePeriodSeconds"] = grace(config)
    return template


def worker_template(config: Config, group: str) -> Object:
    """The template of a gateway's pod or of a pool's."""
    size = getattr(config.kubernetes.pods, group)
    gpus = size.gpus if group in POOLS else 0
    ports = {"metrics": METRICS_PORT}
    if group == GATEWAY:
        ports["http"] = config.gateway.port
    container = _container(config, "ray-worker", _resources(size.cpus, size.memory, gpus), ports)
    container["readinessProbe"] = _gateway_ready(config) if group == GATEWAY else _node_works(10)
    container["livenessProbe"] = _node_works(120)
    container["lifecycle"] = _before_the_end(_leave(config, group))
    template = _template(config, container)
    template["spec"]["serviceAccountName"] = f"{config.kubernetes.name}-worker"
    template["spec"]["automountServiceAccountToken"] = False
    template["spec"]["terminationGracePeriodSeconds"] = grace(config)
    if gpus:
        template["spec"]["tolerations"] = [gpu_toleration()]
    return template


def may_have_gpus(config: Config) -> bool:
    """Whether instances can compute on a GPU at all."""
    return config.model.activations != "int8"


def gpu_toleration() -> Object:
    return {"key": GPU, "operator": "Exists", "effect": "NoSchedule"}


def security() -> Object:
    """What a container may do: nothing that it need not."""
    return {
        "allowPrivilegeEscalation": False,
        "capabilities": {"drop": ["ALL"]},
        "runAsNonRoot": True,
        "runAsUser": USER,
        "seccompProfile": {"type": "RuntimeDefault"},
    }


def secret_variable(name: str, key: str, **more: bool) -> Object:
    """`optional=True` leaves the variable out where the Secret has no such key."""
    return {"name": name, "valueFrom": {"secretKeyRef": {"name": SECRET, "key": key, **more}}}


def _template(config: Config, container: Object) -> Object:
    labels = {"app.kubernetes.io/part-of": "tandem", CLUSTER_LABEL: config.kubernetes.name}
    volumes: list[Object] = [{"name": "cache", "emptyDir": {}}, *secret_files.volumes(config)]
    if config.kubernetes.model_claim is not None:
        volumes.append(
            {
                "name": "models",
                "persistentVolumeClaim": {"claimName": config.kubernetes.model_claim, "readOnly": True},
            }
        )
    return {"metadata": {"labels": labels}, "spec": {"containers": [container], "volumes": volumes}}


def _container(config: Config, name: str, resources: Object, ports: dict[str, int]) -> Object:
    mounts: list[Object] = [{"name": "cache", "mountPath": CACHE}, *secret_files.mounts(config)]
    if config.kubernetes.model_claim is not None:
        mounts.append({"name": "models", "mountPath": MODELS, "readOnly": True})
    return {
        "name": name,
        "image": config.kubernetes.image,
        "env": [
            secret_variable("TANDEM_CONTROL__TOKEN", CONTROL_TOKEN_KEY),
            secret_variable("TANDEM_GATEWAY__API_KEYS", API_KEYS_KEY, **_optional_with_a_file(config)),
            secret_variable("TANDEM_GATEWAY__METRICS_TOKEN", METRICS_TOKEN_KEY),
            secret_variable("TANDEM_ADMIN__TOKEN", ADMIN_TOKEN_KEY, optional=True),
            {"name": "TANDEM_CACHE__DIRECTORY", "value": CACHE},
        ],
        "ports": [{"name": port, "containerPort": number} for port, number in ports.items()],
        "resources": resources,
        "securityContext": security(),
        "volumeMounts": mounts,
    }


def _optional_with_a_file(config: Config) -> dict[str, bool]:
    return {"optional": True} if config.gateway.key_file is not None else {}


def _resources(cpus: float, memory: int, gpus: int = 0) -> Object:
    amounts: Object = {"cpu": f"{cpus:g}", "memory": format_quantity(memory)}
    if gpus:
        amounts[GPU] = str(gpus)
    return {"requests": amounts, "limits": dict(amounts)}


def _gateway_ready(config: Config) -> Object:
    """Our own Service sends traffic by this: both pools have an instance, and the gateway stays."""
    asked = {"path": "/ready", "port": "http"}
    if secret_files.gateway_scheme(config) == "https":
        asked["scheme"] = "HTTPS"
    return {"httpGet": asked, "periodSeconds": 2, "failureThreshold": 2}


def _node_works(failures: int) -> Object:
    """Ray's agent says whether the node is part of the cluster."""
    return {
        "httpGet": {"path": "/api/healthz", "port": AGENT_PORT},
        "initialDelaySeconds": 10,
        "periodSeconds": 5,
        "timeoutSeconds": 5,
        "failureThreshold": failures,
    }


def _before_the_end(command: str) -> Object:
    return {"preStop": {"exec": {"command": ["/bin/sh", "-c", command]}}}


def _leave(config: Config, group: str) -> str:
    """Let what runs here finish elsewhere, then take the node out of the cluster."""
    where = f"--address {OWN_HEAD}:{config.control.port}"
    if group == GATEWAY:
        where += f" --gateway {secret_files.gateway_scheme(config)}://127.0.0.1:{config.gateway.port}"
    return f"tandem k8s leave {where} --deadline {math.ceil(config.control.drain_timeout)}s; ray stop"
