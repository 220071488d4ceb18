"""tandem config: check a file, show what is in force and why, compare with a cluster, print the schema."""

from __future__ import annotations

import json
import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer
import yaml

from cluster.cli.apply import diff
from cluster.cli.connect import control
from cluster.cli.failures import Exit, Failure
from cluster.cli.options import (
    ConfigFile,
    ControlAddress,
    ControlToken,
    Format,
    Output,
    Settings,
    chosen,
    overrides,
    root,
)
from cluster.cli.output import messages, out, print_data, print_json, table
from cluster.config import Config, read
from cluster.config_layers import Resolved
from cluster.config_origins import SET, guessed
from cluster.config_schema import json_schema, markdown
from cluster.config_yaml import Mark, Problem, leaves
from cluster.settings_change import masked

NOT_TOLD = (
    "this controller is of a version that does not tell where its settings come from; what is no default is "
    "`set`"
)

commands = typer.Typer(no_args_is_help=True, help="Check and show the configuration.")
commands.command(name="diff")(diff)


class ShowFormat(StrEnum):
    YAML = "yaml"
    JSON = "json"


class SchemaFormat(StrEnum):
    JSON = "json"
    MARKDOWN = "markdown"


@commands.command()
def validate(
    file: ConfigFile = None,
    argument: Annotated[Path | None, typer.Argument(metavar="FILE", help="The same as -f FILE.")] = None,
    settings: Settings = None,
    output: Output = Format.TABLE,
) -> None:
    """Check a config file; prints every problem with its place."""
    resolved = read(file or argument, overrides(settings))
    if output.is_data:
        print_data(output, "ProblemList", [_problem(problem) for problem in resolved.problems])
        if resolved.problems:
            raise typer.Exit(int(Exit.USAGE))
        return
    _require(resolved)
    out().print("the configuration is valid")


@commands.command()
def show(
    context: typer.Context,
    file: ConfigFile = None,
    settings: Settings = None,
    origin: Annotated[bool, typer.Option("--origin", help="Say where each value comes from.")] = False,
    running: Annotated[
        bool, typer.Option("--running", help="That of the running cluster, whatever files say.")
    ] = False,
    address: ControlAddress = None,
    token: ControlToken = None,
    output: Annotated[
        ShowFormat, typer.Option("--output", "-o", help="How to print it.", callback=chosen)
    ] = ShowFormat.YAML,
) -> None:
    """Print the configuration of a start with these files and flags, or of a cluster. Secrets are masked."""
    if running:
        if file or settings:
            raise Failure(Exit.USAGE, "usage", "--running goes with neither -f nor --set")
        _show_running(context, address, token, output, origin=origin)
        return
    resolved = read(file, overrides(settings))
    data = masked(_require(resolved))
    if origin:
        values = [(".".join(path), value, resolved.origins[path]) for path, value in leaves(data)]
        _show_origins(values, output)
    else:
        _show(data, output)


def _show_running(
    context: typer.Context, address: str | None, token: str | None, output: ShowFormat, *, origin: bool
) -> None:
    with control(context, address, token) as client:
        data, origins = client.config_and_origins()
    if not origin:
        _show(data, output)
        return
    if not origins:
        messages(quiet=root(context).quiet).print(f"note: {NOT_TOLD}")
        origins = guessed(data)
    named = ((".".join(path), value) for path, value in leaves(data))
    _show_origins([(key, value, origins.get(key, SET)) for key, value in named], output)


def _show(data: dict[str, Any], output: ShowFormat) -> None:
    if output is ShowFormat.JSON:
        print_json("Config", [data])
    else:
        sys.stdout.write(yaml.safe_dump(data, sort_keys=False, allow_unicode=True))


@commands.command()
def schema(
    output: Annotated[
        SchemaFormat, typer.Option("--output", "-o", help="How to print it.", callback=chosen)
    ] = SchemaFormat.JSON,
) -> None:
    """Print the JSON schema of the config file, or its documentation."""
    if output is SchemaFormat.MARKDOWN:
        sys.stdout.write(markdown(Config))
    else:
        sys.stdout.write(json.dumps(json_schema(Config), indent=2) + "\n")


def _require(resolved: Resolved[Config]) -> Config:
    if resolved.config is None:
        text = "\n".join(str(problem) for problem in resolved.problems)
        count = len(resolved.problems)
        raise Failure(
            Exit.USAGE, "config_error", f"{count} problem{'s' * (count > 1)} in the configuration\n{text}"
        )
    return resolved.config


def _problem(problem: Problem) -> dict[str, object]:
    at = problem.at
    place = (
        {"source": at.source, "line": at.line, "column": at.column}
        if isinstance(at, Mark)
        else {"source": at}
    )
    return {"at": place, "path": ".".join(problem.path), "message": problem.message}


def _show_origins(found: list[tuple[str, Any, str]], output: ShowFormat) -> None:
    """Key, value and origin of each."""
    if output is ShowFormat.JSON:
        print_json(
            "ConfigValueList", [{"key": key, "value": value, "origin": at} for key, value, at in found]
        )
        return
    rows = table("KEY", "VALUE", "ORIGIN")
    for key, value, at in found:
        rows.add_row(key, json.dumps(value, ensure_ascii=False), at)
    out().print(rows)
