"""tandem console: where the console of the local cluster is, and the token that opens it."""

from __future__ import annotations

import webbrowser
from typing import Annotated

import typer

from cluster.cli.connect import local, require, starting
from cluster.cli.options import Format, Output
from cluster.cli.output import messages, out, print_data


def command(
    context: typer.Context,
    show: Annotated[bool, typer.Option("--open", help="Open it in a browser.")] = False,
    output: Output = Format.TABLE,
) -> None:
    """Print the address of the web console and of /admin/v1, with their token."""
    state = local()
    if not state.admin:
        raise starting()
    require("controller", state.admin)
    if output.is_data:
        print_data(output, "Console", [{"url": state.admin, "token": state.admin_token}])
    else:
        out().print(f"console:  {state.admin}/console")
        out().print(f"API:      {state.admin}/admin/v1")
        out().print(f"token:    {state.admin_token}")
    if show and not webbrowser.open(f"{state.admin}/console"):
        messages().print("no browser could be opened")
