"""tandem logs: what the processes of the cluster on this machine write, each line with its writer.

A process that runs is known by its id, and its log by where its standard error goes. Of an instance that has
ended only the log is left, in Ray's folder beside the others; its name stands in one of Ray's marks there.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from cluster import control_pb2 as pb
from cluster.cli.connect import control
from cluster.cli.failures import Exit, Failure
from cluster.cli.options import ControlAddress, ControlToken, root
from cluster.cli.output import messages
from cluster.control_client import ControlClient
from cluster.local_state import read_state

POLL = 0.2
BLOCK = 65536
ACTOR = b":actor_name:"
MARKS = (b":job_id:", ACTOR, b":task_name:")
"""Lines that Ray writes for its own reader of logs."""
BEGUN = ("spawned", "adopted")
"""Events that only instances have."""
KUBERNETES = "on Kubernetes: kubectl logs -l ray.io/group=decode --all-containers -f"


@dataclass
class Source:
    """A process's log: what of it was read, and the beginning of a line that has not ended."""

    name: str
    path: Path
    offset: int = 0
    rest: bytes = b""

    def lines(self) -> Iterator[str]:
        """Whole lines that are new, without Ray's marks; one that ends with the file waits for its end."""
        with self.path.open("rb") as file:
            file.seek(self.offset)
            while data := file.read(BLOCK):
                self.offset += len(data)
                *whole, self.rest = (self.rest + data).split(b"\n")
                yield from (line.decode(errors="replace") for line in whole if not line.startswith(MARKS))


def command(
    context: typer.Context,
    part: Annotated[
        str | None,
        typer.Argument(
            help="An instance, also one that has ended, a gateway, `controller`, or a pool. Default: all."
        ),
    ] = None,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on until Ctrl-C.")] = False,
    tail: Annotated[int, typer.Option("--tail", min=0, help="How many lines of each, from the end.")] = 100,
    address: ControlAddress = None,
    token: ControlToken = None,
) -> None:
    """Print the logs of controller, gateways and instances, as far as they run on this machine."""
    console = messages(quiet=root(context).quiet)
    with control(context, address, token) as client:
        status = client.status()
        running = processes(status)
        wanted = {name: pid for name, pid in running.items() if _means(part, name)}
        logs = {name: log for name, pid in running.items() if (log := log_of(pid)) is not None}
        folders = {log.parent for log in logs.values()}
        # One that still starts has not told its process id.
        found = {name: logs.get(name) or left_by(name, folders) for name in wanted}
        sources = [Source(name, path) for name, path in found.items() if path is not None]
        if not wanted and part is not None:
            sources = [_ended(client, part, running, folders)]
    elsewhere = [name for name in wanted if name not in {source.name for source in sources}]
    if elsewhere:
        names = ", ".join(elsewhere)
        console.print(f"note: {names}: no log on this machine; {KUBERNETES}")
    state = read_state()
    if part is None and state is not None and state.log is not None and Path(state.log).exists():
        sources.append(Source("up", Path(state.log)))
    width = max((len(source.name) for source in sources), default=0)
    silent = [source.name for source in sources if not _print(source, width, tail)]
    if silent:
        told = "nothing logged yet" if wanted else "it ended without a line"
        console.print(f"note: {', '.join(silent)}: {told}")
    while follow:
        time.sleep(POLL)
        for source in sources:
            _print(source, width)


def _ended(client: ControlClient, name: str, running: Iterable[str], folders: Iterable[Path]) -> Source:
    """The log of an instance that has ended. Raises Failure."""
    found = left_by(name, folders)
    if found is not None:
        return Source(name, found)
    if any(event.subject == name and event.kind in BEGUN for event in client.events()):
        message = f"{name} has ended, and no log of it is on this machine"
        hint = f"the machine where it ran has it in Ray's folder, /tmp/ray/session_latest/logs; {KUBERNETES}"
        raise Failure(Exit.NOT_FOUND, "not_found", message, hint)
    known = ", ".join(running)
    message = f"no part of the cluster is called {name!r}"
    raise Failure(Exit.NOT_FOUND, "not_found", message, f"there are {known}")


def left_by(name: str, folders: Iterable[Path]) -> Path | None:
    """The youngest log in these folders of Ray's that bears an instance's name."""
    mark = ACTOR + name.encode() + b"\n"
    found = [path for folder in folders for path in folder.glob("worker-*.err") if mark in _head(path)]
    return max(found, key=lambda path: path.stat().st_mtime, default=None)


def _head(path: Path) -> bytes:
    """The first lines, or none where they are not ours to see."""
    try:
        with path.open("rb") as file:
            return file.read(BLOCK)
    except OSError:
        return b""


def processes(status: pb.ClusterStatus) -> dict[str, int]:
    """The process id of every part of the cluster."""
    found = {"controller": status.controller_pid}
    found |= {gateway.name: gateway.pid for gateway in status.gateways}
    return found | {one.name: one.pid for one in status.instances}


def log_of(pid: int) -> Path | None:
    """The file that the process's standard error goes to; None if it is no file, or not ours to see."""
    try:
        target = Path(os.readlink(f"/proc/{pid}/fd/2")) if pid else None
    except OSError:
        return None
    return target if target is not None and target.is_file() else None


def _means(part: str | None, name: str) -> bool:
    return part is None or name == part or name.rpartition("-")[0] == part


def _print(source: Source, width: int, tail: int | None = None) -> bool:
    """The new lines, of them the last `tail`; whether there were any."""
    lines = list(source.lines())
    shown = lines if tail is None else lines[max(0, len(lines) - tail) :]
    sys.stdout.writelines(f"{source.name:<{width}} | {line}\n" for line in shown)
    sys.stdout.flush()
    return bool(lines)
