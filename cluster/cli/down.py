"""tandem down: end the local cluster, however it is."""

from __future__ import annotations

import os
import shutil
import signal
from contextlib import suppress

import typer

from cluster.cli.connect import HINT
from cluster.cli.failures import Exit, Failure
from cluster.cli.options import Timeout, root
from cluster.cli.output import messages
from cluster.local_ray import end_processes, processes, wait_until
from cluster.local_state import LocalState, is_held, read_state, remove_state


def command(context: typer.Context, timeout: Timeout = "90s") -> None:  # type: ignore[assignment]
    """End the local cluster; its requests may finish first. After the timeout it is ended by force."""
    console = messages(quiet=root(context).quiet)
    state = read_state()
    if state is None:
        raise Failure(Exit.NOT_FOUND, "not_found", "no local cluster is running", HINT)
    if is_held():
        console.print(f"ending process {state.pid}, which finishes its requests first")
        _ask(state.pid, timeout)
    _sweep(state)
    console.print("stopped; nothing is left running")


def _ask(pid: int, timeout: float) -> None:
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGTERM)
        if not wait_until(lambda: not is_held(), timeout):
            os.kill(pid, signal.SIGKILL)
            wait_until(lambda: not is_held(), 5.0)


def _sweep(state: LocalState) -> None:
    """What an `up` leaves that was killed; nothing after one that ended by itself."""
    end_processes(processes(state.cluster), grace=1.0)
    shutil.rmtree(state.scratch, ignore_errors=True)
    remove_state()
