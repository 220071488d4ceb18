"""Where the settings of a running cluster come from: its start writes that down, `config show` looks it up.

start    origins.json beside the local cluster's record: each value in force, and the layer that it is of
running  the controller's events: what was applied, scaled or bounded since
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cluster import control_pb2 as pb
from cluster.cli.listing import clock
from cluster.config import Config, read
from cluster.config_layers import DEFAULT
from cluster.config_yaml import Path as Key
from cluster.config_yaml import leaves
from cluster.local_state import state_directory
from cluster.settings_change import masked
from engine.errors import ConfigError

SETTLED = "settled at the start"
"""Of what a start makes of a value: a port that it draws, the model that it finds, a path made whole."""
SET = "set"
"""Of what is no default, where nobody here knows more."""
CHANGED = "changed since the start"
BOUNDS = ("min_replicas", "max_replicas")


@dataclass(frozen=True, slots=True)
class Begun:
    """What a start wrote down: values and their origins by dotted path, secrets masked."""

    values: Mapping[str, Any]
    origins: Mapping[str, str]


def start_config(
    file: Path | None, overrides: Mapping[str, object], flags: Mapping[str, str]
) -> tuple[Config, dict[Key, str]]:
    """The config in force and the origin of each of its values. Raises ConfigError with every problem."""
    resolved = read(file, overrides, flags=flags)
    if resolved.config is None:
        raise ConfigError("\n".join(str(problem) for problem in resolved.problems))
    return resolved.config, {path: _whole(origin, file) for path, origin in resolved.origins.items()}


def write_origins(origins: Mapping[Key, str], given: Config, settled: Config) -> None:
    """Write down where the values of this process's cluster come from; nobody serves less for a full disk."""
    before = dict(leaves(given.model_dump(mode="json")))
    found = {}
    for path, value in leaves(settled.model_dump(mode="json")):
        origin = origins.get(path, DEFAULT)
        if before.get(path) != value:
            origin = SETTLED if origin == DEFAULT else f"{origin}, {SETTLED}"
        found[".".join(path)] = origin
    values = {".".join(path): value for path, value in leaves(masked(settled))}
    with suppress(OSError):
        descriptor = os.open(_file(), os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(descriptor, "w", encoding="utf-8") as written:
            json.dump({"pid": os.getpid(), "values": values, "origins": found}, written)


def remove_origins() -> None:
    with suppress(OSError):
        _file().unlink()


def read_origins(pid: int) -> Begun | None:
    """What that process wrote down when it started the local cluster; None if it wrote nothing."""
    try:
        data = json.loads(_file().read_text(encoding="utf-8"))
        if data["pid"] == pid:
            return Begun(dict(data["values"]), dict(data["origins"]))
    except (OSError, ValueError, TypeError, KeyError):
        pass
    return None


def origins_of(
    running: dict[str, Any], begun: Begun | None, events: Iterable[pb.Event]
) -> Iterator[tuple[str, Any, str]]:
    """Key, value and origin of all that a running cluster has in force; without `begun`, as far as is known.

    `running` are its settings, secrets masked; `events` those that its controller remembers.
    """
    defaults = {".".join(path): value for path, value in leaves(masked(Config()))}
    latest = {key: event for event in events for key in _keys(event)}
    for path, value in leaves(running):
        key = ".".join(path)
        event = latest.get(key)
        if begun is not None and key in begun.origins and begun.values.get(key) == value:
            origin = begun.origins[key]
        elif event is not None:
            origin = f"{event.kind} at {clock(event.time)}, event {event.id}"
        elif begun is not None:
            origin = CHANGED
        else:
            origin = DEFAULT if defaults.get(key) == value else SET
        yield key, value, origin


def _keys(event: pb.Event) -> list[str]:
    """The settings that what an event tells has changed."""
    pool = f"pools.{event.subject}"
    if event.kind == "autoscale" and not event.reason.startswith(("on: ", "off: ")):
        return []  # an instance changes its role
    return {
        "applied": [event.subject],
        "scaled": [f"{pool}.replicas"],
        "bounds": [f"{pool}.{name}" for name in BOUNDS],
        "autoscale": [f"{pool}.autoscale.enabled"],
    }.get(event.kind, [])


def _whole(origin: str, file: Path | None) -> str:
    """A place in the file, whose path is to be understood from another folder too."""
    if file is None or not origin.startswith(f"{file}:"):
        return origin
    return f"{file.absolute()}{origin.removeprefix(str(file))}"


def _file() -> Path:
    return state_directory() / "origins.json"
