"""The cluster on one screen: what `status` prints once and `top` keeps up to date."""

from __future__ import annotations

import math

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from cluster import control_pb2 as pb
from cluster.cli.listing import milliseconds
from cluster.cli.listing import state as shown_state
from cluster.cli.output import styled, table
from cluster.status_message import status_from
from global_scheduler.freeness import freeness
from global_scheduler.view import ClusterView

BAR = 10
FULL, TIGHT = 0.9, 0.7


def screen(status: pb.ClusterStatus) -> RenderableType:
    """Everything at a glance."""
    return Group(
        _head(status), "", _pools(status), "", _instances(status), "", _gateways(status), "", _foot(status)
    )


def free_blocks(status: pb.ClusterStatus) -> dict[str, str]:
    """The freeness of every instance that has a status: blocks left per request."""
    view = ClusterView(settle=1.0, stale=math.inf)
    for one in status.instances:
        if one.status.blocks_total and one.status.block_size:
            view.observe(status_from(one.status), 0.0)
    return {load.instance: f"{freeness(load):.1f}" for load in view.loads(0.0)}


def duration(seconds: float) -> str:
    """A rough span for people: 42 s, 5 m 3 s, 2 h 10 m."""
    whole = int(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} m {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} m"


def _head(status: pb.ClusterStatus) -> Text:
    state = "draining" if status.draining else "ready" if status.ready else "not ready"
    known = f"tandem {status.version}", status.model.name, status.model.dtype
    return styled(
        "".join(f"{one} · " for one in known if one),
        (state, "green" if state == "ready" else "bold yellow"),
        f" · up {duration(status.uptime)}",
    )


def _pools(status: pb.ClusterStatus) -> Table:
    rows = table(
        "POOL", "TARGET", "READY", "STARTING", "DRAINING", "KV USED", "RUNNING", "WAITING", "TOKENS/S"
    )
    for pool in status.pools:
        members = [one for one in status.instances if one.role == pool.name]
        total = sum(one.status.blocks_total for one in members)
        busy = sum(one.status.blocks_used + one.status.blocks_reserved for one in members)
        rows.add_row(
            pool.name,
            f"{pool.target} auto" if pool.autoscale else str(pool.target),
            str(pool.ready), str(pool.starting), str(pool.draining),
            f"{100 * busy / total:.0f} %" if total else "-",
            str(sum(one.status.running for one in members)),
            str(sum(one.status.waiting for one in members)),
            _rate(members),
        )  # fmt: skip
    return rows


def _instances(status: pb.ClusterStatus) -> Table:
    rows = table(
        "INSTANCE", "ROLE", "STATE", "PID", "RUNNING", "WAITING", "KV USED", "FREENESS", "TOKENS/S",
        "TOKENS OUT",
    )  # fmt: skip
    free = free_blocks(status)
    for one in status.instances:
        live = one.status
        rows.add_row(
            one.name, one.role, shown_state(one), str(one.pid or "-"), str(live.running),
            str(live.waiting), _bar(one), free.get(one.name, "-"), _rate([one]), str(live.output_tokens),
        )  # fmt: skip
    return rows


def _rate(instances: list[pb.Instance]) -> str:
    """Tokens a second of those that can tell: not one that has just begun."""
    known = [one.tokens_per_second for one in instances if one.HasField("tokens_per_second")]
    return f"{sum(known):.0f}" if known else "-"


def _bar(one: pb.Instance) -> Text:
    """KV in use: a bar with its number."""
    total = one.status.blocks_total
    if not total:
        return Text("-")
    share = (one.status.blocks_used + one.status.blocks_reserved) / total
    style = "red" if share >= FULL else "yellow" if share >= TIGHT else "green"
    filled = min(BAR, math.ceil(share * BAR))
    bar = Text("█" * filled, style)
    bar.append("░" * (BAR - filled), "dim")
    bar.append(f" {100 * share:.0f} %")
    return bar


def _gateways(status: pb.ClusterStatus) -> Table:
    rows = table("GATEWAY", "PID", "ADDRESS", "REQUESTS", "TTFT", "TPOT", "SLO ATTAINMENT")
    for gateway in status.gateways:
        lately = gateway.lately
        told = [milliseconds(lately.ttft), milliseconds(lately.tpot), f"{100 * lately.attainment:.0f} %"]
        rows.add_row(
            gateway.name,
            str(gateway.pid or "-"),
            gateway.url,
            str(gateway.requests),
            *(told if lately.requests else ["-"] * 3),
        )
    return rows


def _foot(status: pb.ClusterStatus) -> str:
    """The controller's process, moves by outcome, and instances that wait to be replaced."""
    outcomes: dict[str, int] = {}
    for one in status.migrations.counts:
        outcomes[one.outcome] = outcomes.get(one.outcome, 0) + one.count
    told = ", ".join(f"{count} {outcome}" for outcome, count in sorted(outcomes.items())) or "none"
    lines = [f"controller: process {status.controller_pid}"] if status.controller_pid else []
    lines += [f"migrations: {told}"]
    lines += [f"{one.name} will be replaced: {one.outdated}" for one in status.instances if one.outdated]
    return "\n".join(lines)
