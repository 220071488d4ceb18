"""One way to name a cost table, whichever kind it is."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from engine.cost_model import CostModel
from engine.errors import ConfigError
from simulator.cost_tables.closed_form import load_closed_form
from simulator.cost_tables.iteration_table import load_iteration_table
from simulator.cost_tables.operator_profile import OperatorProfile

OPTIONS: dict[str, frozenset[str]] = {
    "profile": frozenset({"layers", "hidden", "tensor", "link_bandwidth", "link_latency", "overhead"}),
    "coefficients": frozenset({"model", "tensor", "pipeline", "engine", "overhead", "per_token"}),
    "table": frozenset({"system", "model", "tensor", "overhead"}),
}


def load(name: str, options: Mapping[str, str] | None = None) -> CostModel:
    """A cost model from a file or folder; `name` may carry options: `table.csv:system=h100_sxm,model=8B`.

        a folder      operator profile     layers, hidden, tensor, link_bandwidth, link_latency, overhead (s)
        *.json        closed form          model, tensor, pipeline, engine, overhead (ms), per_token (ms)
        *.csv         iteration table      system, model, tensor, overhead (s)

    Raises ConfigError that names what is missing or unknown.
    """
    where, _, rest = name.partition(":")
    given = dict(options or {})
    for item in filter(None, rest.split(",")):
        key, equals, value = item.partition("=")
        if not equals:
            raise ConfigError(f"{name}: options are key=value, not {item!r}")
        given[key] = value
    path = Path(where)
    if not path.exists():
        raise ConfigError(f"{where}: no such cost table")
    kind = "profile" if path.is_dir() else "coefficients" if path.suffix == ".json" else "table"
    unknown = given.keys() - OPTIONS[kind]
    if unknown:
        raise ConfigError(
            f"{where}: a {kind} has no option {', '.join(sorted(unknown))}; "
            f"it has {', '.join(sorted(OPTIONS[kind]))}"
        )
    try:
        return _load(kind, path, given)
    except ValueError as error:
        raise ConfigError(f"{name}: {error}") from error


def _load(kind: str, path: Path, given: Mapping[str, str]) -> CostModel:
    def needed(key: str) -> str:
        if key not in given:
            raise ConfigError(f"{path}: say which, with {key}=…")
        return given[key]

    if kind == "profile":
        return OperatorProfile(
            path,
            layers=int(needed("layers")),
            hidden=int(given.get("hidden", 4096)),
            tensor=int(given.get("tensor", 1)),
            link_bandwidth=float(given.get("link_bandwidth", 0)),
            link_latency=float(given.get("link_latency", 0)),
            overhead=float(given.get("overhead", 0)),
        )
    if kind == "coefficients":
        return load_closed_form(
            path,
            model=needed("model"),
            tensor=int(given.get("tensor", 1)),
            pipeline=int(given.get("pipeline", 1)),
            engine=given.get("engine", "distserve"),
            overhead=float(given.get("overhead", 0)),
            per_token=float(given.get("per_token", 0)),
        )
    return load_iteration_table(
        path,
        system=given.get("system"),
        model=given.get("model"),
        tensor=int(given["tensor"]) if "tensor" in given else None,
        overhead=float(given.get("overhead", 0)),
    )
