"""The part of tandem.yaml that travels to the cluster: as arguments of the Ray Serve application."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterator
from typing import Any

from cluster.config import Config
from cluster.config_schema import is_secret, settings
from engine.errors import ConfigError
from k8s.objects.names import CONTROL_PORT, POOLS, SERVE_PORT
from k8s.objects.pod import may_have_gpus
from k8s.yaml_text import Object

ANYWHERE = "0.0.0.0"


def in_cluster(config: Config) -> Config:
    """The config with what pods need: open addresses, a fixed control port, one instance or gateway a pod.

    KV goes over TCP: pods of one node share its kernel, by which `auto` would know a near neighbour, but
    not /dev/shm.

    Raises ConfigError for settings that pods cannot have.
    """
    for setting, said in _gpus(config):
        if not may_have_gpus(config):
            raise ConfigError(
                f"model.activations: int8 is for CPUs, and {setting} {said}: change one of them",
                param="model.activations",
            )
    update: dict[str, Any] = {
        "gateway": {
            "host": _open(config.gateway.host),
            "port": config.gateway.port or SERVE_PORT,
            "resources": config.gateway.resources or {"gateway": 1.0},
        },
        "control": {
            "host": _open(config.control.host),
            "port": config.control.port or CONTROL_PORT,
            "resources": config.control.resources or {"controller": 1.0},
        },
        "transfer": {"host": _open(config.transfer.host), "transport": "tcp"},
    }
    pools = {
        name: getattr(config.pools, name).model_copy(
            update={"resources": getattr(config.pools, name).resources or {name: 1.0}}
        )
        for name in POOLS
    }
    changed = {key: getattr(config, key).model_copy(update=values) for key, values in update.items()}
    return config.model_copy(update={**changed, "pools": config.pools.model_copy(update=pools)})


def arguments(config: Config) -> Object:
    """What differs from the defaults, by dotted path. Secrets and the manifests' own settings stay out."""
    plain = settings(Config, config.model_dump(mode="json", exclude={"kubernetes"}))
    usual = dict(settings(Config, Config().model_dump(mode="json", exclude={"kubernetes"})))
    return {
        ".".join(path): _short(value)
        for path, value in sorted(plain)
        if usual.get(path) != value and not is_secret(Config, path)
    }


def secrets(config: Config) -> list[str]:
    """The secrets that the config holds, by dotted path: they go into a Secret, not into manifests."""
    plain = settings(Config, config.model_dump(mode="json"))
    return [".".join(path) for path, value in plain if value and is_secret(Config, path)]


def serve_config(config: Config) -> Object:
    """The RayService's serveConfigV2. Serve's proxy stays on the head; gateways listen themselves."""
    return {
        "proxy_location": "HeadOnly",
        "http_options": {"host": ANYWHERE, "port": SERVE_PORT},
        "applications": [
            {
                "name": "tandem",
                "route_prefix": "/",
                "import_path": "cluster.app:build",
                "args": arguments(config),
            }
        ],
    }


def _gpus(config: Config) -> Iterator[tuple[str, str]]:
    """The settings that have instances compute on a GPU, and what each says."""
    if config.engine.device == "cuda":
        yield "engine.device", "is cuda"
    for name in POOLS:
        if getattr(config.kubernetes.pods, name).gpus:
            yield f"kubernetes.pods.{name}.gpus", "is not 0"
        if getattr(config.pools, name).resources.get("GPU"):
            yield f"pools.{name}.resources", "ask for a GPU"


def _open(host: str) -> str:
    try:
        loopback = ipaddress.ip_address(host).is_loopback
    except ValueError:
        loopback = host == "localhost"
    return ANYWHERE if loopback else host


def _short(value: object) -> object:
    """The amounts of a free mapping, such as resources, as they would be written: 1 rather than 1.0."""
    if not isinstance(value, dict):
        return value
    return {
        name: int(each) if isinstance(each, float) and each.is_integer() else each
        for name, each in value.items()
    }
