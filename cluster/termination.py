"""Notices SIGTERM in a Ray actor, whose main thread never runs Python again."""

from __future__ import annotations

import faulthandler
import os
import signal
import threading
from collections.abc import Callable


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
