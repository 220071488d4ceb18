"""tandem doctor: the usual causes, looked at one by one, each ok, warn or fail with what to do."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import asdict

import typer
from rich.text import Text

from cluster.cli.checks import FAIL, OK, WARN, examine, surroundings
from cluster.cli.connect import certificates, control
from cluster.cli.failures import Exit, Failure
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
from cluster.cli.output import messages, out, print_json, table
from cluster.cli.progress import Steps
from cluster.config import load
from cluster.control_pb2 import ClusterStatus
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
    around = surroundings(config, _status(context, address, token), shown)
    with Steps(messages(quiet=root(context).quiet)).step("looking at the usual causes"):
        found = list(examine(around))
    if output is Format.JSON:
        print_json("FindingList", [asdict(finding) for finding in found])
    else:
        rows = table("", "SUBJECT", "FOUND", "REMEDY")
        for one in found:
            rows.add_row(Text(one.state, STYLE[one.state]), one.subject, Text(one.text), Text(one.remedy))
        out().print(rows)
    if any(finding.state == FAIL for finding in found):
        raise typer.Exit(int(Exit.FAILED))


def _status(context: typer.Context, address: str | None, token: str | None) -> ClusterStatus | None:
    with suppress(TandemError, Failure), control(context, address, token) as client:
        return client.status()
    return None
