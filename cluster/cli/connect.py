"""Finds the cluster that a verb talks to: a flag names it, or the local cluster's record does."""

from __future__ import annotations

import socket
import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

import typer

from cluster.cli.failures import UNBELIEVED, Exit, Failure, failure
from cluster.cli.options import root
from cluster.config_security import ClusterTls
from cluster.control_client import ControlClient
from cluster.local_state import LocalState, is_held, read_state
from cluster.tls import Tls, cluster_tls, pinned
from engine.errors import InvalidKey, Unreachable

HINT = "start one with `tandem up`, or name one with --address HOST:PORT"
TOKEN = "control token"
"""What the control port says is wrong, where it is that."""
TOKEN_HINT = "name the cluster's control.token: --token TOKEN, or tandem --token-file FILE …"
PROBE = 1.0
"""Seconds that a port of this machine may take to accept a connection."""


@contextmanager
def control(context: typer.Context, address: str | None, token: str | None) -> Iterator[ControlClient]:
    """A client for the verb; its flags win over the global ones, and those over the record.

    What does not answer within the block raises a Failure that says why.
    """
    flags = root(context)
    address, token = address or flags.address, token or flags.token
    shown = certificates(flags.tls)
    if address is not None:
        client = ControlClient(_checked(address), token, timeout=flags.timeout, tls=shown)
        with client, _hinting(shown):
            yield client
        return
    state = local()
    if state.control is None:
        raise starting()
    if state.tls is not None:
        shown = cluster_tls(ClusterTls.model_validate(state.tls))
    client = ControlClient(state.control, token or state.token, timeout=flags.timeout, tls=shown)
    with client, _hinting(shown), reaching("controller", state.control):
        yield client


def certificates(folder: Path | None) -> Tls | None:
    """What an operator shows: authority.pem, client.pem and client.key of a folder; None without one."""
    if folder is None:
        return None
    tls = Tls(
        str(folder / "client.pem"),
        str(folder / "client.key"),
        str(folder / "authority.pem"),
        setting="--tls",
        name=ClusterTls().name,
    )
    tls.check()
    return tls


def local() -> LocalState:
    """The recorded cluster. Raises Failure where none is."""
    state = read_state()
    if state is None:
        raise Failure(Exit.NOT_FOUND, "not_found", "no local cluster is running", HINT)
    return state


def gateway() -> str:
    """The address of a gateway of the local cluster. Raises Failure."""
    state = local()
    if not state.gateways:
        raise starting()
    return state.gateways[0]


def trust(url: str, shown: Tls | None = None) -> ssl.SSLContext:
    """How to meet a server: the system's authorities and that of `shown` are believed, and `shown` is shown.

    Of a gateway of the local cluster only the certificate that the record has is believed.
    """
    known = _pinned(url)
    context = known or ssl.create_default_context()
    if shown is not None:
        shown.show(context)
        if known is None:
            shown.believe(context)
    return context


def _pinned(url: str) -> ssl.SSLContext | None:
    """None for a server that the record has no certificate of."""
    state = read_state()
    if state is None or state.certificate is None:
        return None
    if url.rstrip("/").removesuffix("/v1") not in state.gateways:
        return None
    try:
        return pinned(state.certificate)
    except OSError as error:
        message = f"the local cluster's certificate {state.certificate} cannot be read: {error.strerror}"
        raise Failure(Exit.USAGE, "usage", message, "put it back") from None


def starting() -> Failure:
    """The end of a verb that finds a cluster without addresses."""
    if not is_held():
        return _ended()
    return Failure(Exit.UNREACHABLE, "unreachable", "the local cluster is still starting", "try again")


@contextmanager
def reaching(part: str, address: str) -> Iterator[None]:
    """Around calls to a part of the local cluster, by host:port or URL. Raises Failure if it is away."""
    try:
        yield
    except Unreachable:
        if not is_held():
            raise _ended() from None
        if not listens(address):
            message = f"the {part} is being started again"
            raise Failure(Exit.UNREACHABLE, "unreachable", message, "try again in some seconds") from None
        raise


def require(part: str, address: str) -> None:
    """Raises Failure unless the part of the local cluster listens at its address."""
    with reaching(part, address):
        if not listens(address):
            raise Unreachable(f"nothing answers at {address}")


def _ended() -> Failure:
    message = "no local cluster is running (the last ended unexpectedly)"
    return Failure(Exit.NOT_FOUND, "not_found", message, HINT)


def listens(address: str) -> bool:
    """Whether host:port, or the port of a URL, accepts a connection within PROBE."""
    parts = urlsplit(address if "//" in address else f"//{address}")
    try:
        port = parts.port or (443 if parts.scheme == "https" else 80)
        with socket.create_connection((parts.hostname or "", port), timeout=PROBE):
            return True
    except (OSError, ValueError):
        return False


def _checked(address: str) -> str:
    """Raises Failure for what is no HOST:PORT."""
    try:
        parts = urlsplit(f"//{address.removeprefix('http://')}")
        if parts.hostname and parts.port and not parts.path:
            return address
    except ValueError:
        pass
    raise Failure(Exit.USAGE, "usage", f"--address: expected HOST:PORT, got {address!r}")


@contextmanager
def _hinting(tls: Tls | None) -> Iterator[None]:
    """Names the flag where the two ends do not agree about the token, or about certificates."""
    try:
        yield
    except InvalidKey as error:
        told = failure(error)
        told.hint = TOKEN_HINT if TOKEN in error.message else told.hint
        raise told from None
    except Unreachable as error:
        told = failure(error)
        told.hint = _tls_hint(error.message, tls)
        raise told from None


def _tls_hint(message: str, tls: Tls | None) -> str:
    if tls is None:
        closed = "Socket closed" in message or "Connection reset" in message
        return "where the control port has certificates, name yours: --tls DIR" if closed else ""
    if UNBELIEVED in message:
        return "the port's certificate is of another authority than those of --tls DIR: name the cluster's"
    if "WRONG_VERSION_NUMBER" in message:
        return "the control port has no certificates: leave --tls out"
    return ""
