"""The Ray Serve application: one controller, and gateways that are given a handle on it.

serve run cluster.app:build config=/path/to/tandem.yaml gateway.port=8001
serve deploy serve_config.yaml
"""

from __future__ import annotations

import logging
import secrets
from collections.abc import Mapping
from typing import Any

import yaml
from ray import serve
from ray.serve import Application, Deployment
from ray.serve.handle import DeploymentHandle

from cluster import embedded, exposure
from cluster.config import Config, read
from cluster.config_origins import named
from cluster.config_yaml import Path
from cluster.gateway import Gateway
from cluster.logs import configure
from cluster.serve_scaling import REQUESTS
from cluster.settings_change import flat
from engine.errors import ConfigError

logger = logging.getLogger("tandem.controller")

HEALTH_PERIOD = 2.0
HEALTH_TIMEOUT = 30.0
SHUTDOWN_TIMEOUT = 10.0
CONTROLLER_CALLS = 100
GATEWAY_CALLS = 1000


class ControllerReplica:
    """The body of the controller's deployment."""

    async def __init__(self, config_json: str, origins: Mapping[str, str]) -> None:  # type: ignore[misc]
        # Gateways, and whoever builds the application, start half a second sooner without all that.
        from cluster.controller_process import ControllerProcess

        config = Config.model_validate_json(config_json)
        configure(config.log)
        self._process = await ControllerProcess.begin(config, origins)

    async def address(self) -> str:
        """host:port of the gRPC services."""
        return self._process.address

    async def reconfigure(self, user_config: Mapping[str, Any]) -> None:
        """Serve calls it with a new `user_config`: settings by dotted path or in sections, as pool sizes.

        Raises ConfigError, which makes the deployment unhealthy, with the reason in Serve's status.
        """
        await self._process.declare(flat(user_config))

    async def check_health(self) -> None:
        """Raises when Serve should start another controller."""
        self._process.check()

    async def __del__(self) -> None:
        await self._process.close()


class GatewayReplica(Gateway):
    """The body of the gateways' deployment."""

    async def __init__(self, config_json: str, controller: DeploymentHandle[Any]) -> None:  # type: ignore[misc]
        configure(Config.model_validate_json(config_json).log)
        await super().__init__(config_json, controller)

    async def record_autoscaling_stats(self) -> dict[str, float]:
        """What a policy of Serve's autoscaler may go by: see cluster/serve_scaling.py."""
        return {REQUESTS: float(self.requests)}

    async def __del__(self) -> None:
        """Serve sends nothing more; who asked at our own port may read on until it is over."""
        if self.serving:
            await self.drain(self._config.control.drain_timeout)
            await self.close()


def build(args: Config | Mapping[str, object]) -> Application:
    """The application of a config, or of arguments: `config` is a file, anything else a setting's dotted
    path. Serve calls it with one argument.

    Raises ConfigError, also for ports that would let anybody in, and SetupError if the embedded model is
    needed and cannot be had.
    """
    return application(args) if isinstance(args, Config) else application(*_load(args))


def application(config: Config, origins: Mapping[Path, str] | None = None) -> Application:
    """As `build`; `origins` says where the values of a config come from, for operators."""
    exposure.check(config)
    config_json = _settled(config).model_dump_json()
    controller = _deployment(
        ControllerReplica,
        "Controller",
        1,
        calls=CONTROLLER_CALLS,
        resources=config.control.resources,
        shutdown=SHUTDOWN_TIMEOUT,
    ).bind(config_json, named(origins or {}))
    gateway = _deployment(
        serve.ingress()(GatewayReplica),
        "Gateway",
        config.gateway.replicas,
        calls=GATEWAY_CALLS,
        resources=config.gateway.resources,
        # For streams through Serve's proxy, and then for those at the own port.
        shutdown=2 * config.control.drain_timeout + SHUTDOWN_TIMEOUT,
    )
    return gateway.bind(config_json, controller)


def _deployment(
    replica: type, name: str, replicas: int, *, calls: int, resources: Mapping[str, float], shutdown: float
) -> Deployment:
    """Takes no CPU of Ray's books: on a small machine these replicas stand beside the instances."""
    return serve.deployment(
        name=name,
        num_replicas=replicas,
        max_ongoing_requests=calls,
        ray_actor_options={"num_cpus": 0, "resources": dict(resources)},
        health_check_period_s=HEALTH_PERIOD,
        health_check_timeout_s=HEALTH_TIMEOUT,
        graceful_shutdown_timeout_s=shutdown,
        graceful_shutdown_wait_loop_s=0.1,
    )(replica)


def _load(args: Mapping[str, object]) -> tuple[Config, Mapping[Path, str]]:
    path = args.get("config")
    given = {key: value for key, value in args.items() if key != "config"}
    named = {key: f"args: {key}" for key in given}
    file = None if path is None else str(path)
    resolved = read(file, given, flags=named)
    if resolved.config is None:
        wrong = given.keys() & {".".join(problem.path) for problem in resolved.problems}
        resolved = read(file, given | {key: _word(given[key]) for key in wrong}, flags=named)
    if resolved.config is None:
        raise ConfigError("\n".join(map(str, resolved.problems)))
    return resolved.config, resolved.origins


def _word(value: object) -> object:
    """`serve run` gives every argument as text: what it is when it is read as YAML."""
    if not isinstance(value, str):
        return value
    try:
        return yaml.safe_load(value)
    except (yaml.YAMLError, ValueError):
        return value


def _settled(config: Config) -> Config:
    """With a secret, hashes of API keys, and the path of the model that all processes load."""
    config = exposure.with_hashed_keys(exposure.with_whole_paths(config))
    model, control = config.model, config.control
    model = embedded.settled(model, config.cache_directory, lambda done, of: None)
    if control.token is None:
        control = control.model_copy(update={"token": secrets.token_urlsafe(24)})
    admin = config.admin
    if admin.token is None:
        admin = admin.model_copy(update={"token": secrets.token_urlsafe(24)})
    return config.model_copy(update={"model": model, "control": control, "admin": admin})
