"""tandem describe: all that is known of one pool, one instance or one request."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Any

import typer
from google.protobuf.message import Message

from cluster import control_pb2 as pb
from cluster.cli.connect import control
from cluster.cli.failures import Exit, Failure
from cluster.cli.listing import EVENTS, INSTANCES, MIGRATIONS, REQUESTS, clock, show, state, used
from cluster.cli.options import ControlAddress, ControlToken, Form, Listing
from cluster.cli.output import out, plain, print_data
from cluster.cli.timeline_text import show_timeline
from cluster.control_client import ControlClient
from cluster.migrations import names

UNSAID = "the pool has not been looked at since that was asked for"


class Kind(StrEnum):
    POOL = "pool"
    INSTANCE = "instance"
    REQUEST = "request"


def command(
    context: typer.Context,
    kind: Annotated[str, typer.Argument(metavar="KIND", help="pool, instance or request, or KIND/NAME.")],
    name: Annotated[
        str | None, typer.Argument(help="The name of the pool or instance, the id of the request.")
    ] = None,
    address: ControlAddress = None,
    token: ControlToken = None,
    output: Form = Listing.TABLE,
) -> None:
    """Show all that is known of a pool, an instance or a request."""
    first, _, rest = kind.partition("/")
    wanted = name or rest
    if first not in set(Kind) or not wanted:
        raise Failure(Exit.USAGE, "usage", f"expected pool/NAME, instance/NAME or request/ID, got {kind!r}")
    with control(context, address, token) as client:
        if first == Kind.POOL:
            _pool(client, wanted, output)
        elif first == Kind.INSTANCE:
            _instance(client, wanted, output)
        else:
            _request(client, wanted, output)


def _pool(client: ControlClient, name: str, form: Listing) -> None:
    status = client.status()
    one = next((one for one in status.pools if one.name == name), None)
    if one is None:
        raise Failure(Exit.NOT_FOUND, "not_found", f"there is no pool {name!r}", "see `tandem get pools`")
    members = [instance for instance in status.instances if instance.role == name]
    subjects = {name, *(instance.name for instance in members)}
    events = [event for event in client.events() if event.subject in subjects]
    if form is not Listing.TABLE and form is not Listing.WIDE:
        _data(form, "Pool", one, {"members": members, "events": events})
        return
    total = sum(instance.status.blocks_total for instance in members)
    busy = sum(instance.status.blocks_used + instance.status.blocks_reserved for instance in members)
    running, waiting = (sum(getattr(i.status, what) for i in members) for what in ("running", "waiting"))
    lines = {
        "pool": one.name,
        "target": f"{one.target}, within {one.least} and {one.most}" if one.most else str(one.target),
        "set by": f"autoscaling: {one.opinion or UNSAID}" if one.autoscale else "hand",
        "instances": f"{one.ready} ready, {one.starting} starting, {one.draining} draining",
        "KV": f"{busy} of {total} blocks" if total else "-",
        "requests": f"{running} running, {waiting} waiting",
    }
    _lines(lines)
    _section("instances", INSTANCES, members)
    _section("events", EVENTS, events)


def _instance(client: ControlClient, name: str, form: Listing) -> None:
    one = next((one for one in client.status().instances if one.name == name), None)
    if one is None:
        raise Failure(
            Exit.NOT_FOUND, "not_found", f"there is no instance {name!r}", "see `tandem get instances`"
        )
    requests = [request for request in client.requests() if request.instance == name]
    moves = [move for move in client.migrations() if name in (move.source, move.destination)]
    events = [event for event in client.events() if event.subject == name]
    if form is not Listing.TABLE and form is not Listing.WIDE:
        _data(form, "Instance", one, {"requests": requests, "migrations": moves, "events": events})
        return
    status = one.status
    _lines(
        {
            "instance": one.name,
            "role": one.role,
            "state": state(one),
            "process": f"{one.pid} on {one.node}, {one.device}, since {clock(one.started)}",
            "address": f"shm {one.address.shm or '-'}, tcp {one.address.tcp or '-'}",
            "model": f"{one.model.name} ({one.model.dtype})",
            "KV": f"{used(one)} of {status.blocks_total} blocks of {status.block_size} tokens",
            "requests": f"{status.running} running, {status.waiting} waiting",
            "tokens": f"{status.prompt_tokens} read, {status.output_tokens} written",
            "handoffs": f"{status.handoffs}, {status.handoffs_failed} failed",
        }
    )
    _section("requests", REQUESTS, requests)
    _section("migrations", MIGRATIONS, moves)
    _section("events", EVENTS, events)


def _request(client: ControlClient, wanted: str, form: Listing) -> None:
    found = client.requests(wanted)
    moves = [move for move in client.migrations() if names(move.request_id, wanted)]
    timelines = client.timelines(wanted)
    if not (found or moves or timelines):
        reason = f"no request {wanted!r} runs or is remembered"
        raise Failure(Exit.NOT_FOUND, "not_found", reason, "see `tandem get requests`")
    if form is not Listing.TABLE and form is not Listing.WIDE:
        more = {"timelines": timelines, "migrations": moves}
        _data(form, "Request", pb.RequestList(requests=found), more)
        return
    for timeline in timelines:
        show_timeline(timeline)
    for one in found:
        _lines(
            {
                "request": one.id,
                "instance": f"{one.instance} ({one.role})",
                "phase": f"{one.phase}, moving" if one.moving else one.phase,
                "tokens": f"{one.prompt_tokens} of prompt, {one.output_tokens} written",
                "KV": f"{one.blocks} blocks",
                "priority": str(one.priority),
                "age": f"{one.age:.1f} s",
            }
        )
    if not found and not timelines:
        out().print(f"{wanted} does not run any more")
    _section("migrations", MIGRATIONS, moves)


def _data(form: Listing, kind: str, message: Message, more: dict[str, Any]) -> None:
    rest = {key: [plain(item) for item in items] for key, items in more.items()}
    print_data(form, kind, [plain(message) | rest])


def _lines(values: dict[str, str]) -> None:
    width = max(map(len, values)) + 2
    for key, value in values.items():
        out().print(f"{key + ':':<{width}}{value}")


def _section(title: str, columns: Any, items: list[Any]) -> None:
    out().print(f"\n{title}: {'' if items else 'none'}")
    if items:
        show(columns, items, Listing.TABLE)
