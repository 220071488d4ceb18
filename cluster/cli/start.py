"""The entry point of `tandem`: first makes sure that what it is about to import is tandem's."""

from __future__ import annotations

import os
import signal
import sys
from types import FrameType
from typing import NoReturn

from cluster.installation import faults

SHOW_CURSOR = b"\x1b[?25h"
INTERRUPTED = 130


def main() -> None:
    signal.signal(signal.SIGINT, _interrupted)
    # gRPC would write of every connection that ends as it should.
    os.environ.setdefault("GRPC_VERBOSITY", "ERROR")
    found = faults()
    if found:
        sys.stderr.write("".join(f"error: {fault}\n" for fault in found))
        sys.exit(2)
    from cluster.cli.main import build

    build()(prog_name="tandem")


def _interrupted(number: int, frame: FrameType | None) -> None:
    """End at once: no verb leaves anything to tidy up but those that have handlers of their own.

    A KeyboardInterrupt would be lost where Python cannot raise one, as in a callback of gRPC.
    """
    end_at_once(INTERRUPTED)


def end_at_once(code: int) -> NoReturn:
    """Without tidying up anything but the terminal, whose cursor a bar has hidden."""
    for terminal in (1, 2):
        if os.isatty(terminal):
            os.write(terminal, SHOW_CURSOR)
    os._exit(code)
