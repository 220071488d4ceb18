"""How a command ends when it cannot do what it was asked: exit codes, and the error on the terminal.

0 ok · 1 the operation failed · 2 usage or config error · 3 not found · 4 unreachable · 5 a wait timed out
6 conflict or refused · 7 authentication · 130 on SIGINT
"""

from __future__ import annotations

import json
import sys
from enum import IntEnum

from cluster.cli.output import messages, styled
from engine import errors


class Exit(IntEnum):
    OK = 0
    FAILED = 1
    USAGE = 2
    NOT_FOUND = 3
    UNREACHABLE = 4
    TIMEOUT = 5
    REFUSED = 6
    AUTH = 7
    INTERRUPTED = 130


# The first match decides, so a class stands before its base.
EXITS: tuple[tuple[type[errors.TandemError], Exit], ...] = (
    (errors.SetupError, Exit.USAGE),
    (errors.NotFound, Exit.NOT_FOUND),
    (errors.Unreachable, Exit.UNREACHABLE),
    (errors.DeadlineExceeded, Exit.TIMEOUT),
    (errors.RefusedError, Exit.REFUSED),
    (errors.Conflict, Exit.REFUSED),
    (errors.Draining, Exit.REFUSED),
    (errors.InvalidKey, Exit.AUTH),
    (errors.RequestError, Exit.USAGE),
    (errors.TandemError, Exit.FAILED),
)

UNBELIEVED = "CERTIFICATE_VERIFY_FAILED"
"""What OpenSSL says of a certificate whose authority it does not know."""
AUTHORITY_HINT = "name the authority that signed its certificate: SSL_CERT_FILE=FILE"
UNSHOWN = (
    "Server disconnected without sending a response",
    "UNEXPECTED_EOF_WHILE_READING",
    "ReadError",
    "WriteError",
    "Connection reset",
    "Broken pipe",
)
"""What clients see where the server is shown no certificate that it believes: of TLS 1.3, of 1.2, and where
it has gone before they have read why."""
SHOW_HINT = "where it asks clients for a certificate, show one that it believes: tandem --tls DIR …"


class Failure(Exception):
    """A command's own end: what happened, what to do about it, and the exit code.

    `after_data`: the command has printed its data, which with -o json are the one object on stdout.
    """

    def __init__(
        self, exit_code: Exit, code: str, message: str, hint: str = "", *, after_data: bool = False
    ) -> None:
        super().__init__(message)
        self.exit_code = exit_code
        self.code = code
        self.message = message
        self.hint = hint
        self.after_data = after_data


def failure(error: errors.TandemError) -> Failure:
    """The failure that an error of ours means at the command line."""
    exit_code = next(code for kind, code in EXITS if isinstance(error, kind))
    return Failure(exit_code, error.code, error.message, tls_hint(error.message))


def tls_hint(message: str) -> str:
    """What to do about certificates, "" where they are not what is wrong; the message names the URL."""
    if UNBELIEVED in message:
        return AUTHORITY_HINT
    return SHOW_HINT if "https://" in message and any(mark in message for mark in UNSHOWN) else ""


def report(failed: Failure, *, as_json: bool) -> None:
    """To stderr for people; with -o json to stdout, so that a program reads one JSON object."""
    if as_json and not failed.after_data:
        body = {"code": failed.code, "message": failed.message, "hint": failed.hint}
        sys.stdout.write(json.dumps({"error": body}, ensure_ascii=False) + "\n")
        return
    console = messages()
    console.print(styled(("error:", "bold red"), f" {failed.message}"))
    if failed.hint:
        console.print(styled(("hint:", "bold"), f" {failed.hint}"))
