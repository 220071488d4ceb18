"""tandem down: end the local cluster, however it is."""

from __future__ import annotations

import os
import signal
from contextlib import suppress

import typer

from cluster.cli.connect import local
from cluster.cli.options import Timeout, root
from cluster.cli.output import messages
from cluster.cli.progress import Steps
from cluster.local import sweep
from cluster.local_ray import wait_until
from cluster.local_state import is_held


def command(context: typer.Context, timeout: Timeout = "90s") -> None:  # type: ignore[assignment]
    """End the local cluster; its requests may finish first. After the timeout it is ended by force."""
    console = messages(quiet=root(context).quiet)
    state = local()
    if is_held():
        with Steps(console).step(f"ending process {state.pid}, which finishes its requests first"):
            _ask(state.pid, timeout)
    sweep(state)
    console.print("stopped; nothing is left running")


def _ask(pid: int, timeout: float) -> None:
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGTERM)
        if not wait_until(lambda: not is_held(), timeout):
            os.kill(pid, signal.SIGKILL)
            wait_until(lambda: not is_held(), 5.0)
