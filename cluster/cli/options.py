"""Options that several verbs share, and what the root command remembers for them."""

from __future__ import annotations

import math
import os
import shlex
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, TypeVar

import typer

from cluster.cli.failures import Exit, Failure
from cluster.config import Config, read
from cluster.config_layers import DEFAULT, Resolved
from cluster.config_schema import is_secret, setting_of
from cluster.config_yaml import Path as Key
from cluster.units import parse_duration
from engine.errors import ConfigError


class Format(StrEnum):
    """WIDE is for people only: a verb whose table has no more columns is given TABLE."""

    TABLE = "table"
    WIDE = "wide"
    JSON = "json"
    YAML = "yaml"

    @property
    def is_data(self) -> bool:
        """Whether programs read it."""
        return self.value in ("json", "yaml")


class Listing(StrEnum):
    TABLE = "table"
    WIDE = "wide"
    JSON = "json"
    YAML = "yaml"
    NAME = "name"


class Color(StrEnum):
    AUTO = "auto"
    ALWAYS = "always"
    NEVER = "never"


@dataclass
class Root:
    """Global flags; a verb's own flag of the same name wins."""

    address: str | None = None
    token: str | None = None
    tls: Path | None = None
    namespace: str | None = None
    timeout: float = 10.0
    output: Listing | None = None
    quiet: bool = False
    yes: bool = False
    as_json: bool = False


def root(context: typer.Context) -> Root:
    found = context.find_root().obj
    assert isinstance(found, Root)
    return found


K = TypeVar("K", bound=StrEnum)


def chosen(context: typer.Context, parameter: typer.CallbackParam, value: K) -> K:
    """The verb's own -o, or the global one. Raises Failure if the verb has no such form."""
    flags = root(context)
    if flags.output is not None and parameter.name is not None:
        source = context.get_parameter_source(parameter.name)
        if source is not None and source.name == "DEFAULT":
            known = {each.value for each in type(value)}
            if flags.output.value not in known:
                forms = ", ".join(sorted(known))
                raise Failure(Exit.USAGE, "usage", f"-o {flags.output.value}: this verb prints {forms}")
            value = type(value)(flags.output.value)
    flags.as_json = value.value == "json"
    narrow = isinstance(value, Format) and value.value == "wide"
    return type(value)("table" if narrow else value.value)


def seconds(text: str) -> float:
    """A duration as options take it. Raises BadParameter."""
    try:
        return parse_duration(text)
    except ValueError:
        raise typer.BadParameter(
            f'expected a duration with its unit, such as 30s or 5m, got "{text}"'
        ) from None


def above_zero(value: float | None) -> float | None:
    """A finite number above 0. Raises BadParameter."""
    if value is not None and not 0 < value < math.inf:
        raise typer.BadParameter(f"expected a number above 0, got {value:g}")
    return value


def not_negative(value: float | None) -> float | None:
    """A finite number, 0 or more. Raises BadParameter."""
    return value if value == 0 else above_zero(value)


def writable(parameter: typer.CallbackParam, path: Path | None) -> Path | None:
    """A file that can be written: said before what goes into it is measured. Raises Failure."""
    if path is None:
        return None
    flag, folder = parameter.opts[0], path.absolute().parent
    if not folder.is_dir():
        message = f"there is no folder {path.parent}"
        hint = f"make it: mkdir -p {shlex.quote(str(path.parent))}"
    elif path.is_dir():
        message, hint = "that is a folder", "name a file in it"
    elif not os.access(path if path.exists() else folder, os.W_OK):
        message, hint = "it cannot be written", "name a file that may be written"
    else:
        return path
    raise Failure(Exit.USAGE, "usage", f"{flag} {path}: {message}", hint)


Output = Annotated[Format, typer.Option("--output", "-o", help="How to print data.", callback=chosen)]
Form = Annotated[Listing, typer.Option("--output", "-o", help="How to print data.", callback=chosen)]
Headers = Annotated[
    bool | None,
    typer.Option("--headers/--no-headers", help="Whether tables have titles.", show_default="yes"),
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
        except (yaml.YAMLError, ValueError):
            raise Failure(Exit.USAGE, "usage", f"--set {key}: not a YAML value: {value}") from None
        if is_secret(Config, tuple(key.split("."))):
            variable = f"TANDEM_{key.replace('.', '__').upper()}"
            sys.stderr.write(
                f"warning: every user of this machine can read {key} in the list of processes: "
                f"set {variable} instead\n"
            )
    return found


def start_config(
    file: Path | None, given: Mapping[str, object], flags: Mapping[str, str]
) -> tuple[Config, dict[Key, str]]:
    """The config in force and the origin of each of its values. Raises ConfigError with every problem."""
    resolved = read(file, given, flags=flags)
    if resolved.config is None:
        raise ConfigError("\n".join(str(problem) for problem in resolved.problems))
    return resolved.config, {path: _whole(origin, file) for path, origin in resolved.origins.items()}


def _whole(origin: str, file: Path | None) -> str:
    """A place in the file, whose path is to be understood from another folder too."""
    if file is None or not origin.startswith(f"{file}:"):
        return origin
    return f"{file.absolute()}{origin.removeprefix(str(file))}"


def settings_given(resolved: Resolved[Config]) -> dict[str, object]:
    """What some layer sets, by dotted path; a free mapping, such as resources, is one value."""
    assert resolved.config is not None
    data: Any = resolved.config.model_dump(mode="json")
    found: dict[str, object] = {}
    for path, origin in resolved.origins.items():
        if origin != DEFAULT:
            setting, value = setting_of(Config, path), data
            for step in setting:
                value = value[step]
            found[".".join(setting)] = value
    return found


def confirm(context: typer.Context, question: str) -> None:
    """Ask whether to go on; with --yes, or where nobody can answer, go on. Raises Failure for a no."""
    if root(context).yes or not sys.stdin.isatty():
        return
    if not typer.confirm(question, err=True):
        raise Failure(Exit.FAILED, "cancelled", "nothing was changed")


def token_from_file(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8").strip()
    except OSError as error:
        message = f"{path}: cannot be read: {os.strerror(error.errno or 0)}"
        raise Failure(Exit.USAGE, "usage", message) from None
