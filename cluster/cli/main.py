"""The command `tandem`: collects its verbs from the entry-point group tandem.commands and runs one."""

from __future__ import annotations

import sys
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from cluster.cli.failures import Failure, failure, report
from cluster.cli.options import ControlAddress, ControlToken, Root, Timeout, token_from_file
from engine.errors import TandemError

GROUP = "tandem.commands"


class Commands(TyperGroup):
    """Turns our errors into exit codes in one place, for every verb and sub-verb."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except TandemError as error:
            self.end(ctx, failure(error))
        except Failure as failed:
            self.end(ctx, failed)

    def end(self, ctx: Any, failed: Failure) -> None:
        report(failed, as_json=isinstance(ctx.obj, Root) and ctx.obj.as_json)
        raise typer.Exit(int(failed.exit_code))


def _root(
    context: typer.Context,
    address: ControlAddress = None,
    token: ControlToken = None,
    token_file: Annotated[
        Path | None, typer.Option(metavar="FILE", help="A file with the control token.")
    ] = None,
    timeout: Timeout = "10s",  # type: ignore[assignment]
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No messages, only data and errors.")] = False,
) -> None:
    """Serve a language model from a prefill pool and a decode pool."""
    if token is None and token_file is not None:
        token = token_from_file(token_file)
    context.obj = Root(address=address, token=token, timeout=timeout, quiet=quiet)


def build() -> typer.Typer:
    """The command with all its verbs. A verb of another package that cannot load is named and left out."""
    app = typer.Typer(cls=Commands, no_args_is_help=True, pretty_exceptions_enable=False)
    app.callback()(_root)
    for point in sorted(entry_points(group=GROUP), key=lambda point: point.name):
        _add(app, point)
    return app


def _add(app: typer.Typer, point: EntryPoint) -> None:
    try:
        command = point.load()
    except (ImportError, AttributeError) as error:
        sys.stderr.write(f"warning: the verb {point.name} cannot be loaded ({point.value}): {error}\n")
        return
    if isinstance(command, typer.Typer):
        app.add_typer(command, name=point.name)
    else:
        app.command(name=point.name)(command)
