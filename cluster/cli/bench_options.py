"""Options that the verbs of tandem bench share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cluster.cli.options import seconds

Url = Annotated[
    str | None,
    typer.Option("--url", metavar="[NAME=]URL", help="The server to measure. Default: the local cluster."),
]
Versus = Annotated[
    list[str] | None,
    typer.Option("--vs", metavar="[NAME=]URL", help="Measure this server too, in turn with the first."),
]
ApiKey = Annotated[str | None, typer.Option("--api-key", help="Sent to every server.")]
ModelName = Annotated[
    str | None, typer.Option("--model", metavar="NAME", help="Default: the first that a server lists.")
]
Pids = Annotated[
    list[str] | None,
    typer.Option("--pid", metavar="[NAME=]PID", help="A server's process here: reports its tree's memory."),
]
Plain = Annotated[
    bool, typer.Option("--plain", help="Send only fields of OpenAI's own API; answers may then end early.")
]
Repeat = Annotated[int, typer.Option("--repeat", min=1, help="How many repetitions.")]
SloTTFT = Annotated[
    float, typer.Option("--slo-ttft", metavar="DURATION", parser=seconds, help="Time to first token.")
]
SloTPOT = Annotated[
    float, typer.Option("--slo-tpot", metavar="DURATION", parser=seconds, help="Time per further token.")
]
RequestTimeout = Annotated[
    float,
    typer.Option("--within", metavar="DURATION", parser=seconds, help="How long one request may take."),
]
Html = Annotated[
    Path | None, typer.Option("--html", metavar="FILE", help="Also write one page with tables and plots.")
]
