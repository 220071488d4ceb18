"""tandem tls: a small authority, and certificates for every port, where nobody else issues them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cluster.certificates import AUTHORITY, CLUSTER, GATEWAY, create, renew
from cluster.cli.options import root
from cluster.cli.output import messages, out
from cluster.cli.progress import Steps

commands = typer.Typer(no_args_is_help=True, help="Make certificates for the ports of a cluster.")

Folder = Annotated[Path, typer.Argument(metavar="DIR", help="The folder of the certificates.")]
Hosts = Annotated[
    list[str] | None, typer.Option("--host", help="A name or address by which clients reach the gateway.")
]
Days = Annotated[int, typer.Option("--days", min=1, max=3650, help="How long certificates are valid.")]


@commands.command("init")
def init(context: typer.Context, folder: Folder, host: Hosts = None, days: Days = 365) -> None:
    """Make an authority and three certificates: of the cluster, of the gateway, of an operator."""
    with Steps(messages(quiet=root(context).quiet)).step("making an authority and three certificates"):
        create(folder, host or [], days=days)
    _say(folder)


@commands.command("renew")
def again(context: typer.Context, folder: Folder, host: Hosts = None, days: Days = 365) -> None:
    """Issue the three certificates anew; running processes show them to the next connection."""
    with Steps(messages(quiet=root(context).quiet)).step("issuing three certificates"):
        renew(folder, host or [], days=days)
    out().print(f"renewed the certificates in {folder}")


def _say(folder: Path) -> None:
    """What goes into the config."""
    where = folder.resolve()
    out().print(f"# {where}/{AUTHORITY}.key signs; keep it elsewhere. In tandem.yaml:")
    out().print("security:")
    for section, name in (("cluster_tls", CLUSTER), ("gateway_tls", GATEWAY), ("admin_tls", GATEWAY)):
        values = {"certificate": f"{where}/{name}.pem", "key": f"{where}/{name}.key"}
        if section == "cluster_tls":
            values["authority"] = f"{where}/{AUTHORITY}.pem"
        out().print(f"  {section}:")
        for key, value in values.items():
            out().print(f"    {key}: {value}", soft_wrap=True)
