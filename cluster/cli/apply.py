"""tandem apply, tandem config diff: a config file and the running cluster."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from cluster import control_pb2 as pb
from cluster.cli.connect import control
from cluster.cli.failures import Exit, Failure
from cluster.cli.options import (
    ConfigFile,
    ControlAddress,
    ControlToken,
    Format,
    Output,
    Settings,
    Timeout,
    confirm,
    overrides,
    root,
    settings_given,
)
from cluster.cli.output import messages, out, plain, print_data, table
from cluster.cli.progress import Advance, Steps
from cluster.cli.waiting import Watch
from cluster.config import Config, read
from cluster.config_schema import is_secret
from cluster.control_client import ControlClient
from cluster.settings_change import AT_ONCE, INSTANCES, RESTART

POLL = 0.25
TAKES = {
    "at_once": "at once",
    "controller": "at once: the controller begins anew",
    "instances": "instances are replaced, one after the other",
    "restart": "a restart",
}
HINT = "deploy the application again (`serve deploy`), or `tandem down` and `tandem up`"


def command(
    context: typer.Context,
    file: ConfigFile = None,
    settings: Settings = None,
    wait: Annotated[bool, typer.Option("--wait/--no-wait", help="Return when it is in force.")] = True,
    timeout: Timeout = "30m",  # type: ignore[assignment]
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would change.")] = False,
    address: ControlAddress = None,
    token: ControlToken = None,
    output: Output = Format.TABLE,
) -> None:
    """Bring what a config file sets into force in the running cluster; no request is lost.

    What the file does not set stays as it is. What takes a restart is named, and left: exit code 6.
    """
    given = _given(file, settings)
    with control(context, address, token) as client:
        changes = client.apply(given, dry_run=True)
        if not dry_run and any(change.effect != RESTART for change in changes):
            if any(change.effect == INSTANCES for change in changes):
                confirm(context, "Every instance is replaced, one after the other. Go on?")
            client.apply(given)
            if wait:
                with Steps(messages(quiet=root(context).quiet)).step(_title(changes)) as advance:
                    _settle(client, timeout, advance)
    _print(changes, output, dry_run=dry_run)
    left = [change.path for change in changes if change.effect == RESTART]
    if left and not dry_run:
        message = f"not in force before a restart: {', '.join(left)}"
        raise Failure(Exit.REFUSED, "restart_needed", message, HINT, after_data=True)


def diff(
    context: typer.Context,
    file: ConfigFile = None,
    settings: Settings = None,
    address: ControlAddress = None,
    token: ControlToken = None,
    output: Output = Format.TABLE,
) -> None:
    """Show where the running cluster differs from what a file sets, and what each change would take."""
    given = _given(file, settings)
    with control(context, address, token) as client:
        changes = client.apply(given, dry_run=True)
    _print(changes, output, dry_run=True)


def _given(file: Path | None, settings: list[str] | None) -> dict[str, object]:
    """What the layers set. Raises Failure with every problem in them, and when they set nothing."""
    resolved = read(file, overrides(settings))
    if resolved.config is None:
        text = "\n".join(str(problem) for problem in resolved.problems)
        raise Failure(Exit.USAGE, "config_error", text)
    found = settings_given(resolved)
    if not found:
        raise Failure(Exit.USAGE, "usage", "nothing is set: name a file with -f, or a setting with --set")
    # Secrets are not told by the cluster, so that they cannot be compared.
    return {path: value for path, value in found.items() if not is_secret(Config, tuple(path.split(".")))}


def _title(changes: Sequence[pb.Change]) -> str:
    if any(change.effect == INSTANCES for change in changes):
        return "replacing instances, one after the other"
    if any(change.effect == AT_ONCE for change in changes):
        return "bringing pools to their targets"
    return "the controller begins anew"


def _settle(client: ControlClient, timeout: float, advance: Advance) -> None:
    """Until no instance is outdated and the pools are at their targets."""
    end, most, watch = time.monotonic() + timeout, 0, Watch(client)
    while True:
        status = watch.look()
        old = [one.name for one in status.instances if one.outdated]
        most = max(most, len(old))
        advance(most - len(old), max(1, most))
        sized = status.pools and all(
            pool.ready == pool.target and not pool.starting and not pool.draining for pool in status.pools
        )
        if sized and not old:
            return
        if time.monotonic() > end:
            what = f"{', '.join(old)} not replaced" if old else "the pools are not at their targets"
            raise Failure(Exit.TIMEOUT, "timeout", f"{what} after {timeout:g} s", "see `tandem events`")
        time.sleep(POLL)


def _print(changes: Sequence[pb.Change], output: Format, *, dry_run: bool) -> None:
    if output.is_data:
        items: list[dict[str, Any]] = [plain(change) | {"dry_run": dry_run} for change in changes]
        print_data(output, "ChangeList", items)
        return
    if not changes:
        out().print("the running cluster has these settings")
        return
    rows = table("SETTING", "FROM", "TO", "TAKES", "WHY")
    for change in changes:
        rows.add_row(change.path, change.before, change.after, TAKES[change.effect], change.reason)
    out().print(rows)
