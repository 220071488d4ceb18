"""Options that the verbs of tandem bench share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cluster.bench.workload import Workload, replayed
from cluster.cli.options import above_zero, seconds, writable
from simulator.workload.traces import read_trace

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
Rest = Annotated[
    float,
    typer.Option(
        "--rest",
        metavar="DURATION",
        parser=seconds,
        help="Between two servers' turns, for what one still does after its last answer.",
    ),
]
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
TraceFile = Annotated[
    Path, typer.Option("--trace", metavar="FILE", help="Of tandem, Azure, BurstGPT or Mooncake; .gz too.")
]
Shrink = Annotated[float, typer.Option("--shrink", callback=above_zero, help="Divide all lengths by this.")]
Speed = Annotated[
    float, typer.Option("--speed", callback=above_zero, help="How many times as fast as it happened.")
]
LongestPrompt = Annotated[
    int | None, typer.Option("--longest-prompt", min=1, help="Cut longer prompts, in tokens.")
]
LongestAnswer = Annotated[
    int | None, typer.Option("--longest-answer", min=1, help="Cut longer answers, in tokens.")
]
Html = Annotated[
    Path | None,
    typer.Option(
        "--html", metavar="FILE", callback=writable, help="Also write one page with tables and plots."
    ),
]


def workload_of(
    trace: Path,
    *,
    speed: float,
    shrink: float,
    longest_prompt: int | None,
    longest_answer: int | None,
    requests: int | None,
) -> Workload:
    """The requests of a trace, as its options say. Raises ConfigError."""
    return replayed(
        read_trace(trace),
        trace,
        speed=speed,
        requests=requests,
        shrink=shrink,
        longest_prompt=longest_prompt,
        longest_output=longest_answer,
    )
