"""tandem bench transfer: how fast each transport carries KV between two processes of this machine."""

from __future__ import annotations

from typing import Annotated

import typer

from cluster.cli.bench_options import Html, Repeat
from cluster.cli.bench_output import Watch, present
from cluster.cli.options import Format, Output, root
from cluster.cli.output import messages
from engine.errors import InvalidParameter


def transfer(
    context: typer.Context,
    over: Annotated[
        str, typer.Option("--over", metavar="NAMES", help="Transports, separated by commas.")
    ] = "shm,tcp,grpc,nccl,nixl",
    chunk: Annotated[int, typer.Option("--chunk", min=1, max=64, help="MiB of a chunk.")] = 16,
    chunks: Annotated[int, typer.Option("--chunks", min=1, max=512, help="Chunks of one repetition.")] = 32,
    repeat: Repeat = 5,
    html: Html = None,
    output: Output = Format.TABLE,
) -> None:
    """Send chunks between two processes over shared memory, TCP, gRPC and, if there, NCCL and NIXL."""
    from cluster.bench.transfer import WAYS, measure
    from cluster.bench.transfer_sections import transfer_sections

    names = [name.strip() for name in over.split(",")]
    for name in names:
        if name not in WAYS:
            raise InvalidParameter(f"--over knows {', '.join(WAYS)}, not {name!r}", param="--over")
    watch = Watch(messages(quiet=root(context).quiet))
    with watch:
        report = measure(names, chunk << 20, chunks, repeat, begin=watch.begin, say=watch.say)
    present(report, transfer_sections(report), "tandem bench transfer", html, output)
