"""Lists of things in every output format: what `get` and `describe` print."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from google.protobuf.message import Message

from cluster import control_pb2 as pb
from cluster.cli.options import Listing
from cluster.cli.output import out, plain, print_data, shown, table


@dataclass(frozen=True, slots=True)
class Columns:
    """How one kind of thing is shown: `kind` in JSON, `name` alone, `cells` by title; `wide` come after."""

    kind: str
    name: Callable[[Any], str]
    cells: dict[str, Callable[[Any], str]]
    wide: dict[str, Callable[[Any], str]]


def show(
    columns: Columns,
    items: Sequence[Message],
    form: Listing,
    *,
    headers: bool | None = None,
    again: bool = False,
) -> None:
    """Print the items; data only, on stdout. `again`: one look of many, in JSON a line."""
    if form is Listing.JSON or form is Listing.YAML:
        print_data(form, columns.kind, [plain(item) for item in items], again=again)
    elif form is Listing.NAME:
        sys.stdout.writelines(f"{shown(columns.name(item))}\n" for item in items)
    else:
        titled = columns.cells | (columns.wide if form is Listing.WIDE else {})
        rows = table(*titled)
        if headers is not None:
            rows.show_header = headers
        for item in items:
            rows.add_row(*(cell(item) for cell in titled.values()))
        out().print(rows)
    sys.stdout.flush()


def clock(seconds: float) -> str:
    """A time of day."""
    return datetime.fromtimestamp(seconds).strftime("%H:%M:%S")


def milliseconds(seconds: float) -> str:
    return f"{1000 * seconds:.1f} ms"


def state(one: pb.Instance) -> str:
    """An instance's state, and whether it is cordoned."""
    return f"{one.state},cordoned" if one.cordoned and one.state != "draining" else str(one.state)


def used(one: pb.Instance) -> str:
    """The share of KV blocks in use."""
    total = one.status.blocks_total
    return f"{100 * (one.status.blocks_used + one.status.blocks_reserved) / total:.0f} %" if total else "-"


POOLS = Columns(
    "PoolList",
    lambda one: f"pool/{one.name}",
    {
        "POOL": lambda one: one.name,
        "TARGET": lambda one: str(one.target),
        "READY": lambda one: str(one.ready),
        "STARTING": lambda one: str(one.starting),
        "DRAINING": lambda one: str(one.draining),
    },
    {},
)
INSTANCES = Columns(
    "InstanceList",
    lambda one: f"instance/{one.name}",
    {
        "INSTANCE": lambda one: one.name,
        "ROLE": lambda one: one.role,
        "STATE": state,
        "RUNNING": lambda one: str(one.status.running),
        "WAITING": lambda one: str(one.status.waiting),
        "KV USED": used,
        "TOKENS OUT": lambda one: str(one.status.output_tokens),
    },
    {
        "PID": lambda one: str(one.pid or "-"),
        "NODE": lambda one: one.node or "-",
        "DEVICE": lambda one: one.device or "-",
        "STEP": lambda one: milliseconds(one.status.step_seconds),
        "PREEMPTIONS": lambda one: str(one.status.preemptions),
        "HANDOFFS": lambda one: f"{one.status.handoffs} ({one.status.handoffs_failed} failed)",
    },
)
REQUESTS = Columns(
    "RequestList",
    lambda one: f"request/{one.id}",
    {
        "REQUEST": lambda one: one.id,
        "INSTANCE": lambda one: one.instance,
        "PHASE": lambda one: f"{one.phase},moving" if one.moving else one.phase,
        "TENANT": lambda one: one.tenant or "-",
        "PROMPT": lambda one: str(one.prompt_tokens),
        "OUTPUT": lambda one: str(one.output_tokens),
        "AGE": lambda one: f"{one.age:.1f} s",
    },
    {"BLOCKS": lambda one: str(one.blocks), "PRIORITY": lambda one: str(one.priority)},
)
MIGRATIONS = Columns(
    "MigrationList",
    lambda one: f"migration/{one.id}",
    {
        "ID": lambda one: str(one.id),
        "TIME": lambda one: clock(one.time),
        "REQUEST": lambda one: one.request_id,
        "FROM": lambda one: one.source,
        "TO": lambda one: one.destination,
        "CAUSE": lambda one: one.cause,
        "STAGES": lambda one: str(one.stages),
        "BYTES": lambda one: str(one.bytes),
        "DOWNTIME": lambda one: milliseconds(one.downtime),
        "OUTCOME": lambda one: one.outcome,
    },
    {
        "TOOK": lambda one: milliseconds(one.seconds),
        "TOKENS": lambda one: str(one.tokens),
        "REASON": lambda one: one.reason,
        "DETAIL": lambda one: one.detail,
    },
)
ADAPTERS = Columns(
    "AdapterList",
    lambda one: f"adapter/{one}",
    {"ADAPTER": str},
    {},
)
EVENTS = Columns(
    "EventList",
    lambda one: f"event/{one.id}",
    {
        "ID": lambda one: str(one.id),
        "TIME": lambda one: clock(one.time),
        "KIND": lambda one: one.kind,
        "SUBJECT": lambda one: one.subject,
        "REASON": lambda one: one.reason,
    },
    {},
)
