"""Where each setting of a running cluster comes from: what its start said of it, and what has become of it.

start    default, file:line, variable or flag of each value, carried to the controller beside the config
settled  what a start makes of a value: a port that it draws, the model that it finds, a path made whole
changed  what was applied, scaled or bounded since, by its event while the controller remembers that

The controller alone knows: the CLI and the console show what it tells.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from datetime import UTC, datetime
from typing import Any

from cluster import control_pb2 as pb
from cluster.config import Config
from cluster.config_layers import DEFAULT
from cluster.config_yaml import Path, leaves
from cluster.settings_change import masked

SET = "set"
"""Of what is no default, where the start said nothing."""

SETTLED = "settled at the start"
CHANGED = "changed since the start"
"""Of what no event tells any more."""

BOUNDS = ("min_replicas", "max_replicas")

Origins = Mapping[str, str]
"""By dotted path."""


def named(origins: Mapping[Path, str]) -> dict[str, str]:
    """What reading a config found out, under the names that operators know."""
    return {".".join(path): origin for path, origin in origins.items()}


def settled(origins: Mapping[Path, str], given: Config, made: Config) -> dict[Path, str]:
    """The origins of what a start made of the config that it was given."""
    before = dict(leaves(given.model_dump(mode="json")))
    found = dict(origins)
    for path, value in leaves(made.model_dump(mode="json")):
        if before.get(path) != value:
            origin = origins.get(path, DEFAULT)
            found[path] = SETTLED if origin == DEFAULT else f"{origin}, {SETTLED}"
    return found


def explained(
    running: Config, deployed: Config, origins: Origins, events: Iterable[pb.Event]
) -> Iterator[tuple[str, Any, str]]:
    """Key, value and origin of all that is in force; secrets are masked.

    `deployed` is what the cluster was started with, `origins` what that start said, {} if nothing; `events`
    are those that are remembered, oldest first.
    """
    defaults, begun = (dict(leaves(masked(one))) for one in (Config(), deployed))
    latest = {key: event for event in events for key in _keys(event)}
    for path, value in leaves(masked(running)):
        key = ".".join(path)
        usual = path in defaults and defaults[path] == value
        if path not in begun or begun[path] != value:
            origin = _change(path, latest)
        elif key not in origins:
            origin = DEFAULT if usual else SET
        elif origins[key] == DEFAULT and not usual:
            origin = SETTLED
        else:
            origin = origins[key]
        yield key, value, origin


def guessed(running: dict[str, Any]) -> dict[str, str]:
    """Origins of masked settings by dotted path, where the controller is one that tells none."""
    defaults = dict(leaves(masked(Config())))
    return named(
        {
            path: DEFAULT if path in defaults and defaults[path] == value else SET
            for path, value in leaves(running)
        }
    )


def _change(path: Path, latest: Mapping[str, pb.Event]) -> str:
    """What has changed a value, or the free mapping that it is in; the time in UTC, as on the console."""
    for end in range(len(path), 0, -1):
        event = latest.get(".".join(path[:end]))
        if event is not None:
            at = datetime.fromtimestamp(event.time, UTC)
            return f"{event.kind} at {at:%H:%M:%S} UTC, event {event.id}"
    return CHANGED


def _keys(event: pb.Event) -> list[str]:
    """The settings that what an event tells has changed."""
    pool = f"pools.{event.subject}"
    match event.kind:
        case "applied":
            return [event.subject]
        case "scaled":
            return [f"{pool}.replicas"]
        case "bounds":
            return [f"{pool}.{name}" for name in BOUNDS]
        case "autoscale" if event.reason.startswith(("on: ", "off: ")):
            return [f"{pool}.autoscale.enabled"]
        case "role":  # an instance went from one pool to the other
            return ["pools.prefill.replicas", "pools.decode.replicas"]
    return []
