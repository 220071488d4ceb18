"""Finds the cluster that a verb talks to: a flag names it, or the local cluster's record does."""

from __future__ import annotations

from pathlib import Path

import typer

from cluster.cli.failures import Exit, Failure
from cluster.cli.options import root
from cluster.config_security import ClusterTls
from cluster.control_client import ControlClient
from cluster.local_state import LocalState, read_state
from cluster.tls import Tls, cluster_tls

HINT = "start one with `tandem up`, or name one with --address HOST:PORT"


def control(context: typer.Context, address: str | None, token: str | None) -> ControlClient:
    """A client for the verb; its flags win over the global ones, and those over the record."""
    flags = root(context)
    address = address or flags.address
    token = token or flags.token
    if address is None:
        state = local()
        if state.control is None:
            raise Failure(Exit.UNREACHABLE, "unreachable", "the local cluster is still starting", "try again")
        address, token = state.control, token or state.token
        if flags.tls is None and state.tls is not None:
            shown = cluster_tls(ClusterTls.model_validate(state.tls))
            return ControlClient(address, token, timeout=flags.timeout, tls=shown)
    return ControlClient(address, token, timeout=flags.timeout, tls=certificates(flags.tls))


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
    state = read_state()
    if state is None:
        raise Failure(Exit.UNREACHABLE, "unreachable", "no local cluster is running", HINT)
    return state
