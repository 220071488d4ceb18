"""tandem doctor: the usual causes, looked at one by one, each ok, warn or fail with what to do."""

from __future__ import annotations

from dataclasses import asdict, replace

import typer
from rich.text import Text

from cluster.cli.checks import FAIL, OK, WARN, Surroundings, examine, surroundings
from cluster.cli.connect import certificates, control
from cluster.cli.failures import Exit, Failure, failure
from cluster.cli.options import (
    ConfigFile,
    ControlAddress,
    ControlToken,
    Format,
    Output,
    Settings,
    overrides,
    root,
)
from cluster.cli.output import messages, out, print_data, table
from cluster.cli.progress import Steps
from cluster.config import load
from engine.errors import TandemError

STYLE = {OK: "green", WARN: "yellow", FAIL: "bold red"}


def command(
    context: typer.Context,
    file: ConfigFile = None,
    settings: Settings = None,
    address: ControlAddress = None,
    token: ControlToken = None,
    output: Output = Format.TABLE,
) -> None:
    """Find out why something does not work. Exit code 1 says that something failed."""
    config = load(file, overrides(settings))
    shown = certificates(root(context).tls)
    around = _asked(surroundings(config, shown), context, address, token)
    with Steps(messages(quiet=root(context).quiet)).step("looking at the usual causes"):
        found = list(examine(around))
    if output.is_data:
        print_data(output, "FindingList", [asdict(finding) for finding in found])
    else:
        rows = table("", "SUBJECT", "FOUND", "REMEDY")
        for one in found:
            rows.add_row(Text(one.state, STYLE[one.state]), one.subject, one.text, one.remedy)
        out().print(rows)
    if any(finding.state == FAIL for finding in found):
        raise typer.Exit(int(Exit.FAILED))


def _asked(
    around: Surroundings, context: typer.Context, address: str | None, token: str | None
) -> Surroundings:
    """With what the running cluster says of itself, or why it says nothing."""
    try:
        with control(context, address, token) as client:
            return replace(around, status=client.status(), control=client.address)
    except TandemError as error:
        return replace(around, failure=failure(error))
    except Failure as failed:
        return replace(around, failure=failed)
