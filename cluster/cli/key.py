"""tandem key: draw API keys, of which only hashes are kept."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from cluster.cli.failures import Exit, Failure
from cluster.cli.output import messages
from cluster.exposure import SHORTEST, TOO_SHORT
from cluster.keys import draw, hashed, read_file

commands = typer.Typer(no_args_is_help=True, help="Draw API keys, and write their hashes.")

Tenant = Annotated[
    str, typer.Option("--tenant", help="Whose key it is: limits, fairness and prefix cache go by it.")
]


@commands.command("new")
def new(
    tenant: Tenant = "",
    file: Annotated[
        Path | None, typer.Option("--file", metavar="FILE", help="Add the hash to this key file.")
    ] = None,
) -> None:
    """Draw a key. It is printed once; its hash goes into gateway.key_file or gateway.api_keys."""
    key = draw()
    line = hashed(key, tenant)
    if file is not None:
        _add(file, line)
        messages().print(f"its hash was added to {file}")
    else:
        messages().print(f"its hash, for gateway.key_file or gateway.api_keys:\n{line}")
    sys.stdout.write(f"{key}\n")


@commands.command("hash")
def hash_key(tenant: Tenant = "") -> None:
    """Print the hash of a key that is read from standard input: on a command line others could read it."""
    if sys.stdin.isatty():
        key = typer.prompt("Key", hide_input=True, err=True)
    else:
        key = sys.stdin.readline(4096)
    key = key.strip()
    if not key:
        raise Failure(Exit.USAGE, "usage", "no key was given on standard input")
    if len(key) < SHORTEST:
        raise Failure(Exit.USAGE, "usage", f"the key is {TOO_SHORT}")
    sys.stdout.write(f"{hashed(key, tenant)}\n")


def _add(file: Path, line: str) -> None:
    """Append, to a file that is a key file or becomes one. Raises ConfigError, Failure."""
    before = read_file(file) if file.exists() else ()
    try:
        descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        with os.fdopen(descriptor, "a", encoding="ascii") as out:
            out.write(f"{line}\n" if not before or file.read_bytes().endswith(b"\n") else f"\n{line}\n")
    except OSError as error:
        raise Failure(Exit.USAGE, "usage", f"{file}: cannot be written to: {error.strerror}") from None
