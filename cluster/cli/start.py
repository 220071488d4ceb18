"""The entry point of `tandem`: first makes sure that what it is about to import is tandem's."""

from __future__ import annotations

import sys

from cluster.installation import faults


def main() -> None:
    found = faults()
    if found:
        sys.stderr.write("".join(f"error: {fault}\n" for fault in found))
        sys.exit(2)
    from cluster.cli.main import build

    build()()
