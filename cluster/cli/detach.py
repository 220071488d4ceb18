"""Runs `tandem up` in the background, in a session of its own, until `tandem down`."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

from cluster.cli.failures import Exit, Failure
from cluster.local_state import LocalState, only_one, read_state, state_directory

POLL = 0.1
TAIL = 20


def detach(timeout: float) -> LocalState:
    """Start the same command in the background and wait until it is ready.

    Raises Failure with the end of its log and its exit code; RefusedError when one is running.
    """
    with only_one():
        log = state_directory() / "up.log"
        child = _spawn(log)
    end = time.monotonic() + timeout
    while True:
        state = read_state()
        if state is not None and state.pid == child.pid and state.ready:
            return state
        code = child.poll()
        if code is not None:
            raise Failure(
                _exit(code), "start_failed", f"tandem did not start\n{_tail(log)}", f"the log is {log}"
            )
        if time.monotonic() > end:
            child.terminate()
            raise Failure(Exit.TIMEOUT, "timeout", f"not ready after {timeout:g} s", f"the log is {log}")
        time.sleep(POLL)


def _spawn(log: Path) -> subprocess.Popen[bytes]:
    # --log tells the child that it is the one in the background, in whatever form the flag was given.
    # -P: the current folder, which may hold a folder named cluster, stays out of the search path.
    command = [
        sys.executable,
        "-P",
        "-c",
        "from cluster.cli.start import main; main()",
        *sys.argv[1:],
        "--log",
        str(log),
    ]
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        return subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )


def _exit(code: int) -> Exit:
    try:
        return Exit(code)
    except ValueError:
        return Exit.FAILED


def _tail(log: Path) -> str:
    return "\n".join(log.read_text(encoding="utf-8", errors="replace").splitlines()[-TAIL:])
