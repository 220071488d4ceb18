"""Where each setting of a running cluster comes from: what its start said of it, and what has become of it.

start    default, file:line, variable or flag of each value, carried to the controller beside the config
settled  what a start makes of a default: a port that it draws, the model that it finds
changed  what was applied, scaled or bounded since
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from cluster.config import Config
from cluster.config_layers import DEFAULT
from cluster.config_yaml import Path, leaves
from cluster.settings_change import masked

SET = "set"
"""Of what is no default, where the start said nothing."""

SETTLED = "settled at the start"
CHANGED = "changed since the start"

Origins = Mapping[str, str]
"""By dotted path."""


def named(origins: Mapping[Path, str]) -> dict[str, str]:
    """What reading a config found out, under the names that operators know."""
    return {".".join(path): origin for path, origin in origins.items()}


def explained(running: Config, deployed: Config, origins: Origins) -> Iterator[tuple[str, Any, str]]:
    """Key, value and origin of all that is in force; secrets are masked.

    `deployed` is what the cluster was started with, `origins` what that start said, {} if nothing.
    """
    defaults, begun = (dict(leaves(masked(one))) for one in (Config(), deployed))
    for path, value in leaves(masked(running)):
        key = ".".join(path)
        usual = path in defaults and defaults[path] == value
        if path not in begun or begun[path] != value:
            origin = CHANGED
        elif key not in origins:
            origin = DEFAULT if usual else SET
        elif origins[key] == DEFAULT and not usual:
            origin = SETTLED
        else:
            origin = origins[key]
        yield key, value, origin
