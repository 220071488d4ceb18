"""tandem logs: what the processes of the cluster on this machine write, each line with its writer."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from cluster import control_pb2 as pb
from cluster.cli.connect import control
from cluster.cli.failures import Exit, Failure
from cluster.cli.options import ControlAddress, ControlToken, root
from cluster.cli.output import messages
from cluster.local_state import read_state

POLL = 0.2
BLOCK = 65536
MARKS = (b":job_id:", b":actor_name:", b":task_name:")
"""Lines that Ray writes for its own reader of logs."""
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
        str | None, typer.Argument(help="An instance, a gateway, `controller`, or a pool. Default: all.")
    ] = None,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on until Ctrl-C.")] = False,
    tail: Annotated[int, typer.Option("--tail", min=0, help="How many lines of each, from the end.")] = 100,
    address: ControlAddress = None,
    token: ControlToken = None,
) -> None:
    """Print the logs of controller, gateways and instances, as far as they run on this machine."""
    with control(context, address, token) as client:
        status = client.status()
    wanted = {name: pid for name, pid in processes(status).items() if _means(part, name)}
    if not wanted:
        known = ", ".join(processes(status))
        raise Failure(
            Exit.NOT_FOUND, "not_found", f"no part of the cluster is called {part!r}", f"there are {known}"
        )
    sources = [Source(name, path) for name, pid in wanted.items() if (path := log_of(pid)) is not None]
    elsewhere = [name for name in wanted if name not in {source.name for source in sources}]
    if elsewhere and not root(context).quiet:
        names = ", ".join(elsewhere)
        messages().print(f"note: {names}: no log on this machine; {KUBERNETES}", markup=False)
    state = read_state()
    if part is None and state is not None and state.log is not None and Path(state.log).exists():
        sources.append(Source("up", Path(state.log)))
    _print(sources, tail, follow=follow)


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


def _print(sources: list[Source], tail: int, *, follow: bool) -> None:
    width = max((len(source.name) for source in sources), default=0)

    def write(source: Source, lines: list[str]) -> None:
        sys.stdout.writelines(f"{source.name:<{width}} | {line}\n" for line in lines)
        sys.stdout.flush()

    for source in sources:
        write(source, list(source.lines())[-tail:] if tail else list(source.lines())[:0])
    while follow:
        time.sleep(POLL)
        for source in sources:
            write(source, list(source.lines()))
