"""Ends processes, and notices SIGTERM in a Ray actor, whose main thread never runs Python again."""

from __future__ import annotations

import contextlib
import faulthandler
import os
import platform
import signal
import threading
from collections.abc import Callable

import psutil


def end_here(pid: int, node: str) -> None:
    """Kill a Ray worker if it is on this machine, with its connections; one elsewhere is left to Ray.

    Ray asks first, and a stopped process, which cannot answer, keeps its peers waiting for five more seconds.
    """
    with contextlib.suppress(psutil.Error):
        if is_here(pid, node):
            psutil.Process(pid).kill()


def is_here(pid: int, node: str) -> bool:
    """Whether that Ray worker is a process of this machine.

    Containers of one host may bear its name and have other processes by the same ids.
    """
    with contextlib.suppress(psutil.Error):
        return node == platform.node() and "".join(psutil.Process(pid).cmdline()[:1]).startswith("ray::")
    return False


def on_sigterm(callback: Callable[[], object]) -> None:
    """Call `callback` once, in a thread, when the process is asked to end; it does not end by itself then.

    The main thread of an asynchronous actor waits in Ray's C++ loop for ever, so a Python signal handler
    would never run. The handler of faulthandler is written in C and may be set from any thread: what it
    prints (a traceback) goes into a pipe, and the pipe wakes us.
    """
    receive, send = os.pipe()
    os.set_blocking(send, False)
    faulthandler.register(signal.SIGTERM, file=send, all_threads=False, chain=False)

    def wait() -> None:
        os.read(receive, 1)
        callback()

    threading.Thread(target=wait, name="sigterm", daemon=True).start()
