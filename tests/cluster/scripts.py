"""Clusters that are started by a script of tests, in processes of their own."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil

ROOT = Path(__file__).parents[2]


@contextmanager
def script(module: str, *arguments: str) -> Iterator[tuple[subprocess.Popen[str], int]]:
    """Run `module`, which says `ready PORT` and ends when its stdin does: its process and the port.

    Nothing that it had at the end is left afterwards.
    """
    environment = {key: value for key, value in os.environ.items() if not key.startswith("RAY_")}
    environment |= {"RAY_worker_niceness": "0"}
    with subprocess.Popen(
        [sys.executable, "-m", module, *arguments],
        cwd=ROOT, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    ) as process:  # fmt: skip
        assert process.stdin is not None
        assert process.stdout is not None
        below: list[psutil.Process] = []
        try:
            word, _, port = process.stdout.readline().strip().partition(" ")
            assert word == "ready"
            yield process, int(port)
        finally:
            with contextlib.suppress(psutil.NoSuchProcess):
                below = psutil.Process(process.pid).children(recursive=True)
            process.stdin.close()
            process.wait(120)
    assert not [one for one in below if one.is_running() and one.status() != psutil.STATUS_ZOMBIE]
