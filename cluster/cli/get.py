"""tandem get: pools, instances, requests, migrations, adapters and events, as tables or as data."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from enum import StrEnum
from typing import Annotated, Any

import typer

from cluster.cli.connect import control
from cluster.cli.failures import Exit, Failure
from cluster.cli.listing import (
    ADAPTERS,
    EVENTS,
    INSTANCES,
    MIGRATIONS,
    POOLS,
    REQUESTS,
    Columns,
    show,
)
from cluster.cli.options import ControlAddress, ControlToken, Form, Headers, Listing
from cluster.control_client import ControlClient
from cluster.migrations import names

REFRESH = 1.0


class Kind(StrEnum):
    POOLS = "pools"
    INSTANCES = "instances"
    REQUESTS = "requests"
    MIGRATIONS = "migrations"
    ADAPTERS = "adapters"
    EVENTS = "events"


def command(
    context: typer.Context,
    kind: Annotated[Kind, typer.Argument(help="What to list.")],
    name: Annotated[str | None, typer.Argument(help="Only what has that name.")] = None,
    watch: Annotated[bool, typer.Option("--watch", "-w", help="Again each second, until Ctrl-C.")] = False,
    headers: Headers = None,
    address: ControlAddress = None,
    token: ControlToken = None,
    output: Form = Listing.TABLE,
) -> None:
    """List pools, instances, requests, migrations, adapters or events. With -w and -o json, a line a look."""
    columns, fetch, called = KINDS[kind]
    with control(context, address, token) as client:
        while True:
            found = [item for item in fetch(client) if name is None or called(item, name)]
            if name is not None and not found and not watch:
                singular = kind.value.removesuffix("s")
                hint = f"see `tandem get {kind.value}`"
                raise Failure(Exit.NOT_FOUND, "not_found", f"there is no {singular} {name!r}", hint)
            show(columns, found, output, headers=headers, again=watch)
            if not watch:
                return
            time.sleep(REFRESH)


def _adapters(client: ControlClient) -> Sequence[Any]:
    """None: adapters cannot be served yet. A cluster that does not answer is an error all the same."""
    client.status()
    return []


Fetch = Callable[[ControlClient], Sequence[Any]]
Called = Callable[[Any, str], bool]

KINDS: dict[Kind, tuple[Columns, Fetch, Called]] = {
    Kind.POOLS: (POOLS, lambda client: client.status().pools, lambda one, name: one.name == name),
    Kind.INSTANCES: (INSTANCES, lambda client: client.status().instances, lambda one, name: one.name == name),
    Kind.REQUESTS: (REQUESTS, lambda client: client.requests(), lambda one, name: names(one.id, name)),
    Kind.MIGRATIONS: (
        MIGRATIONS,
        lambda client: client.migrations(),
        lambda one, name: names(one.request_id, name) or name in (one.source, one.destination, str(one.id)),
    ),
    Kind.ADAPTERS: (ADAPTERS, _adapters, lambda one, name: one == name),
    Kind.EVENTS: (EVENTS, lambda client: list(client.events()), lambda one, name: one.subject == name),
}
