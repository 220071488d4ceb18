"""The command `tandem`: collects its verbs from the entry-point group tandem.commands and runs one."""

from __future__ import annotations

import logging
import os
import sys
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup
from typer.main import get_group

from cluster.cli.failures import Failure, failure, report
from cluster.cli.options import (
    Color,
    ControlAddress,
    ControlToken,
    Listing,
    Root,
    Timeout,
    token_from_file,
)
from engine.errors import TandemError

GROUP = "tandem.commands"


class Commands(TyperGroup):
    """Finds a verb in the entry-point group when it is asked for, so that none waits for what others import.

    Turns our errors into exit codes in one place, for every verb and sub-verb.
    """

    def list_commands(self, ctx: Any) -> list[str]:
        return sorted(point.name for point in entry_points(group=GROUP))

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        for point in entry_points(group=GROUP, name=cmd_name):
            if cmd_name not in self.commands and (verb := _load(point)) is not None:
                self.commands[cmd_name] = verb
        return self.commands.get(cmd_name)

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        if self.get_command(ctx, args[0]) is None:  # the nearest of all of them is named
            for name in self.list_commands(ctx):
                self.get_command(ctx, name)
        return super().resolve_command(ctx, args)

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
    tls: Annotated[
        Path | None,
        typer.Option(
            "--tls",
            metavar="DIR",
            help="Certificates to show and believe, at the control port and at gateways: see `tandem tls`.",
        ),
    ] = None,
    namespace: Annotated[
        str | None,
        typer.Option(
            "--namespace",
            "-n",
            help="The namespace of Kubernetes, for the verbs of k8s. Default: `kubernetes.namespace`.",
        ),
    ] = None,
    output: Annotated[
        Listing | None, typer.Option("--output", "-o", help="How verbs print data. Default: table.")
    ] = None,
    headers: Annotated[
        bool, typer.Option("--headers/--no-headers", help="Whether tables have titles.")
    ] = True,
    timeout: Timeout = "10s",  # type: ignore[assignment]
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No messages, only data and errors.")] = False,
    verbose: Annotated[
        bool, typer.Option("--verbose", "-v", help="Say on stderr what is asked of whom.")
    ] = False,
    color: Annotated[
        Color, typer.Option("--color", help="Colours; auto: on a terminal, unless NO_COLOR is set.")
    ] = Color.AUTO,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Ask nothing, go on.")] = False,
) -> None:
    """Serve a language model from a prefill pool and a decode pool."""
    if token is None and token_file is not None:
        token = token_from_file(token_file)
    _dress(color, verbose=verbose)
    context.obj = Root(
        address=address,
        token=token,
        tls=tls,
        namespace=namespace,
        timeout=timeout,
        output=output,
        headers=headers,
        quiet=quiet,
        yes=yes,
        as_json=output is Listing.JSON,
    )


def _dress(color: Color, *, verbose: bool) -> None:
    """Colours by the variables that rich reads; log lines of what is asked on stderr."""
    if color is not Color.AUTO:
        for name in ("NO_COLOR", "FORCE_COLOR"):
            os.environ.pop(name, None)
        os.environ["FORCE_COLOR" if color is Color.ALWAYS else "NO_COLOR"] = "1"
    logger = logging.getLogger("tandem")
    logger.setLevel(logging.DEBUG if verbose else logging.NOTSET)
    logger.handlers = [logging.StreamHandler(sys.stderr)] if verbose else []


def build() -> typer.Typer:
    """The command with all its verbs."""
    app = typer.Typer(cls=Commands, no_args_is_help=True, pretty_exceptions_enable=False)
    app.callback()(_root)
    return app


def _load(point: EntryPoint) -> Any:
    """A verb; one of another package that cannot be loaded is named and left out."""
    try:
        verb = point.load()
    except (ImportError, AttributeError) as error:
        sys.stderr.write(f"warning: the verb {point.name} cannot be loaded ({point.value}): {error}\n")
        return None
    alone = typer.Typer()
    if isinstance(verb, typer.Typer):
        alone.add_typer(verb, name=point.name)
    else:
        alone.command(name=point.name)(verb)
    return get_group(alone).commands[point.name]
