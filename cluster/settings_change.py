"""Settings that change while the cluster runs: what differs, and what each difference takes.

at once      the controller does it
controller   the controller begins anew with it and adopts the instances: streams don't notice
instances    every instance is replaced by one that has it, one after the other, drained by migration
restart      it comes into force when the application is deployed or started again
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from fnmatch import fnmatchcase
from typing import Any

from pydantic import ValidationError

from cluster import control_pb2 as pb
from cluster.config import Config
from cluster.config_schema import expected, holds_section, is_secret, settings
from cluster.config_section import CONTRADICTION
from cluster.config_yaml import Path, leaves
from engine.errors import ConfigError

AT_ONCE = "at_once"
CONTROLLER = "controller"
INSTANCES = "instances"
RESTART = "restart"

MASK = "…"

# The first pattern that fits decides.
RULES: tuple[tuple[str, str, str], ...] = (
    ("pools.*.replicas", AT_ONCE, "instances come, or drain and go; autoscaling ends"),
    ("pools.*.min_replicas", AT_ONCE, "the controller keeps the bounds"),
    ("pools.*.max_replicas", AT_ONCE, "the controller keeps the bounds"),
    ("pools.*.autoscale.enabled", AT_ONCE, "who sets the size"),
    ("pools.*.resources*", INSTANCES, "instances ask for it when they start"),
    ("pools.*", CONTROLLER, "the controller sizes pools by it"),
    ("scheduler.place_timeout", RESTART, "gateways read it when they start"),
    ("scheduler.recovery_timeout", RESTART, "gateways read it when they start"),
    ("scheduler.*", CONTROLLER, "the controller decides by it"),
    ("engine.*", INSTANCES, "engines are built with it"),
    ("transfer.*", INSTANCES, "both ends of every movement are built with it"),
    ("model.dtype", INSTANCES, "weights are loaded with it"),
    ("model.weights", INSTANCES, "weights are loaded with it"),
    ("model.activations", INSTANCES, "weights are loaded with it"),
    ("model.*", RESTART, "gateways have the model's tokenizer, name and limits"),
    ("control.host", RESTART, "gateways and operators know the controller by it"),
    ("control.port", RESTART, "gateways and operators know the controller by it"),
    ("control.token", RESTART, "every part of the cluster shows it"),
    ("control.resources*", RESTART, "Serve places the controller by it"),
    ("control.call_timeout", RESTART, "gateways read it when they start"),
    ("control.*", INSTANCES, "controller and instances keep to it"),
    ("kubernetes.*", RESTART, "manifests are rendered with it: render and apply them"),
    ("*", RESTART, "it is read when a process starts"),
)


def effect(path: str) -> tuple[str, str]:
    """What a change of the setting takes, and why."""
    return next((kind, reason) for pattern, kind, reason in RULES if fnmatchcase(path, pattern))


def with_settings(config: Config, values: Mapping[str, object]) -> Config:
    """The config with other values, by dotted path. Raises ConfigError naming every path that is wrong."""
    data: dict[str, Any] = config.model_dump(mode="json")
    for dotted, value in values.items():
        *sections, key = dotted.split(".")
        here: Any = data
        for step in sections:
            here = here.setdefault(step, {}) if isinstance(here, dict) else None
        if not isinstance(here, dict):
            raise ConfigError(f"{dotted}: there is no such setting", param=dotted)
        here[key] = value
    try:
        return Config.model_validate_json(json.dumps(data))
    except ValidationError as error:
        raise ConfigError(
            "\n".join(_problem(tuple(map(str, one["loc"])), one) for one in error.errors())
        ) from None


def flat(given: Mapping[str, Any], path: Path = ()) -> dict[str, object]:
    """Settings by dotted path, from sections, dotted keys or both; a free mapping is one value."""
    found: dict[str, object] = {}
    for key, value in given.items():
        inner = (*path, *key.split("."))
        if isinstance(value, Mapping) and holds_section(Config, *inner) is not None:
            found |= flat(value, inner)
        else:
            found[".".join(inner)] = value
    return found


def differences(before: Config, after: Config) -> list[pb.Change]:
    """What differs, in the order of the config. Secrets are masked."""
    olds, news = dict(_leaves(before)), dict(_leaves(after))
    found = []
    for path in [*olds, *(path for path in news if path not in olds)]:
        if olds.get(path) != news.get(path):
            dotted = ".".join(path)
            kind, reason = effect(dotted)
            shown = [MASK if is_secret(Config, path) else json.dumps(side.get(path)) for side in (olds, news)]
            found.append(pb.Change(path=dotted, before=shown[0], after=shown[1], effect=kind, reason=reason))
    return found


def masked(config: Config) -> dict[str, Any]:
    """The settings as plain data, secrets replaced by a sign that there is one."""
    data: dict[str, Any] = config.model_dump(mode="json")
    for path, value in list(leaves(data)):
        if value and is_secret(Config, path):
            holder = data
            for step in path[:-1]:
                holder = holder[step]
            holder[path[-1]] = MASK
    return data


def fingerprint(config: Config) -> str:
    """Tells whether an instance runs what would be started now: what takes new instances to change."""
    relevant = {".".join(path): value for path, value in _leaves(config) if _matters(".".join(path))}
    return digest(relevant)


def base_digest(config: Config) -> str:
    """Names the settings that an application was deployed with; a token that was drawn does not count."""
    return digest({".".join(path): value for path, value in _leaves(config) if not is_secret(Config, path)})


def digest(data: Mapping[str, object]) -> str:
    return hashlib.sha256(json.dumps(data, sort_keys=True).encode()).hexdigest()[:16]


def _matters(dotted: str) -> bool:
    kind, _ = effect(dotted)
    return kind == INSTANCES or dotted.startswith(("model.", "cache."))


def _leaves(config: Config) -> Iterator[tuple[Path, object]]:
    yield from settings(Config, config.model_dump(mode="json"))


def _problem(path: Path, details: Any) -> str:
    if details["type"] == "extra_forbidden":
        return f"{'.'.join(path)}: unknown key"
    if details["type"] == CONTRADICTION:
        return f"{'.'.join(path)}: {details['msg']}"
    try:
        wanted = expected(Config, path, details.get("ctx", {}))
    except (KeyError, AttributeError):
        return f"{'.'.join(path)}: {details['msg']}"
    return f"{'.'.join(path)}: expected {wanted}, got {json.dumps(details.get('input'), default=str)}"
