"""tandem completion: a script that has a shell complete verbs, options and their values."""

from __future__ import annotations

import sys
from enum import StrEnum
from typing import Annotated

import typer
from typer.completion import get_completion_script  # type: ignore[attr-defined]


class Shell(StrEnum):
    BASH = "bash"
    ZSH = "zsh"
    FISH = "fish"


def command(
    shell: Annotated[Shell, typer.Argument(help="Your shell.")],
) -> None:
    """Print a completion script: source <(tandem completion bash), or tandem completion fish | source."""
    script = get_completion_script(prog_name="tandem", complete_var="_TANDEM_COMPLETE", shell=shell.value)
    sys.stdout.write(script + "\n")
