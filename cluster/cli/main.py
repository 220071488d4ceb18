"""The command `tandem`: collects its verbs from the entry-point group tandem.commands and runs one."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Sequence
from importlib.metadata import EntryPoint, entry_points
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup
from typer.main import get_group

from cluster.cli.anywhere import with_global_flags
from cluster.cli.failures import Exit, Failure, failure, report
from cluster.cli.options import (
    Color,
    ControlAddress,
    ControlToken,
    Listing,
    Root,
    Timeout,
    root,
    token_from_file,
)
from cluster.cli.output import show_titles
from engine.errors import TandemError

GROUP = "tandem.commands"

UsageError: Any = typer.BadParameter.__mro__[1]
"""What a command line that cannot be parsed raises; typer gives it no public name."""


class Commands(TyperGroup):
    """Finds a verb in the entry-point group when it is asked for, so that none waits for what others import.

    Turns our errors into exit codes in one place, for every verb and sub-verb, and with -o json those of the
    command line itself into an object.
    """

    words: Sequence[str] = ()

    def make_context(self, info_name: Any, args: Any, parent: Any = None, **extra: Any) -> Any:
        self.words = list(args)
        try:
            return super().make_context(info_name, args, parent, **extra)
        except UsageError as error:
            self.misused(error)
            raise

    def list_commands(self, ctx: Any) -> list[str]:
        return sorted(point.name for point in entry_points(group=GROUP))

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        for point in entry_points(group=GROUP, name=cmd_name):
            if cmd_name not in self.commands and (verb := _load(point)) is not None:
                self.commands[cmd_name] = with_global_flags(verb, self, _behind)
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
        except UsageError as error:
            self.misused(error)
            raise

    def end(self, ctx: Any, failed: Failure) -> None:
        chosen = isinstance(ctx.obj, Root) and ctx.obj.as_json
        report(failed, as_json=chosen or wants_json(self.words))
        raise typer.Exit(int(failed.exit_code))

    def misused(self, error: Any) -> None:
        """Where JSON is asked for, tell it so and end; else typer shows its box, or the help of a group."""
        if wants_json(self.words) and type(error).__name__ != "NoArgsIsHelpError":
            path = error.ctx.command_path if error.ctx is not None else "tandem"
            told = Failure(Exit.USAGE, "usage", str(error.format_message()), f"see `{path} --help`")
            report(told, as_json=True)
            raise typer.Exit(int(Exit.USAGE)) from None


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
    _paint(color)
    _talk(verbose)
    show_titles(headers)
    context.obj = Root(
        address=address,
        token=token,
        tls=tls,
        namespace=namespace,
        timeout=timeout,
        output=output,
        quiet=quiet,
        yes=yes,
        as_json=output is Listing.JSON,
    )


def _behind(context: typer.Context, name: str, value: Any) -> None:
    """A global flag that stands behind the verb."""
    flags, named = root(context), {"headers": show_titles, "verbose": _talk}
    if name in named:
        named[name](value)
    elif name == "color":
        _paint(Color(value))
    elif name == "token_file":
        flags.token = flags.token or token_from_file(Path(value))
    else:
        setattr(flags, name, Path(value) if name == "tls" else value)


def _paint(color: Color) -> None:
    """Colours by the variables that rich reads."""
    if color is not Color.AUTO:
        for name in ("NO_COLOR", "FORCE_COLOR"):
            os.environ.pop(name, None)
        os.environ["FORCE_COLOR" if color is Color.ALWAYS else "NO_COLOR"] = "1"


def _talk(verbose: bool) -> None:
    """Log lines of what is asked on stderr."""
    logger = logging.getLogger("tandem")
    logger.setLevel(logging.DEBUG if verbose else logging.NOTSET)
    logger.handlers = [logging.StreamHandler(sys.stderr)] if verbose else []


def build() -> typer.Typer:
    """The command with all its verbs."""
    app = typer.Typer(cls=Commands, no_args_is_help=True, pretty_exceptions_enable=False)
    app.callback()(_root)
    return app


def wants_json(words: Sequence[str]) -> bool:
    """Whether the last -o of a command line, which may be a wrong one, is json."""
    form = ""
    for word, after in pairwise([*words, ""]):
        if word in ("-o", "--output"):
            form = after
        elif word.startswith("--output="):
            form = word.removeprefix("--output=")
        elif word.startswith("-o"):
            form = word.removeprefix("-o")
    return form == "json"


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
