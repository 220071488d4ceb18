"""tandem version: ours, and those of what it stands on."""

from __future__ import annotations

import platform
from importlib.metadata import PackageNotFoundError, version

import typer

from cluster.cli.options import Format, Output
from cluster.cli.output import out, print_data, table
from model.installation import kernels_instructions, kernels_obstacle

PACKAGES = ("ray", "torch", "triton", "grpcio", "protobuf")


def command(context: typer.Context, output: Output = Format.TABLE) -> None:
    """Print the versions of tandem and of what it stands on."""
    versions = {"tandem": _version("tandem-serving"), "python": platform.python_version()}
    versions |= {name: _version(name) for name in PACKAGES}
    obstacle = kernels_obstacle()
    versions["kernels"] = (
        f"compiled, {kernels_instructions()}"
        if obstacle is None
        else f"torch's, as the compiled ones are {obstacle}"
    )
    if output.is_data:
        print_data(output, "Version", [versions])
        return
    rows = table("COMPONENT", "VERSION")
    for name, number in versions.items():
        rows.add_row(name, number)
    out().print(rows)


def _version(distribution: str) -> str:
    try:
        return version(distribution)
    except PackageNotFoundError:
        return "not installed"
