"""Options that several verbs share, and what the root command remembers for them."""

from __future__ import annotations

import os
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from cluster.cli.failures import Exit, Failure
from cluster.units import parse_duration


class Format(StrEnum):
    TABLE = "table"
    JSON = "json"


@dataclass
class Root:
    """Global flags; a verb's own flag of the same name wins."""

    address: str | None = None
    token: str | None = None
    timeout: float = 10.0
    quiet: bool = False
    as_json: bool = False


def root(context: typer.Context) -> Root:
    found = context.find_root().obj
    assert isinstance(found, Root)
    return found


def _remember_format(context: typer.Context, value: Format) -> Format:
    root(context).as_json = value is Format.JSON
    return value


def seconds(text: str) -> float:
    """A duration as options take it. Raises BadParameter."""
    try:
        return parse_duration(text)
    except ValueError:
        raise typer.BadParameter(
            f'expected a duration with its unit, such as 30s or 5m, got "{text}"'
        ) from None


Output = Annotated[
    Format, typer.Option("--output", "-o", help="How to print data.", callback=_remember_format)
]
ControlAddress = Annotated[
    str | None,
    typer.Option("--address", metavar="HOST:PORT", help="The control address. Default: the local cluster's."),
]
ControlToken = Annotated[
    str | None,
    typer.Option("--token", metavar="TOKEN", help="The control token. Default: the local cluster's."),
]
Timeout = Annotated[
    float,
    typer.Option("--timeout", metavar="DURATION", parser=seconds, help="How long to wait, such as 30s."),
]
Wait = Annotated[
    float, typer.Option("--wait", metavar="DURATION", parser=seconds, help="How long a start may take.")
]
ConfigFile = Annotated[
    Path | None, typer.Option("--config", "-f", metavar="FILE", help="The config file (YAML).")
]
Settings = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Set any config key, such as engine.token_budget=128."),
]


def overrides(settings: list[str] | None) -> dict[str, object]:
    """--set a.b=VALUE as overrides by dotted path; values are read as YAML."""
    import yaml

    found: dict[str, object] = {}
    for setting in settings or []:
        key, equals, value = setting.partition("=")
        if not equals or not key:
            raise Failure(Exit.USAGE, "usage", f'--set expects KEY=VALUE, got "{setting}"')
        try:
            found[key] = yaml.safe_load(value)
        except yaml.YAMLError:
            raise Failure(Exit.USAGE, "usage", f"--set {key}: not a YAML value: {value}") from None
    return found


def token_from_file(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8").strip()
    except OSError as error:
        message = f"{path}: cannot be read: {os.strerror(error.errno or 0)}"
        raise Failure(Exit.USAGE, "usage", message) from None
