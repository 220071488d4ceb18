"""tandem bench migration: how long a stream pauses when its request moves, however long it is."""

from __future__ import annotations

from typing import Annotated

import typer

from cluster.cli.bench_engine import Dtype, ModelPath, config_of, whole
from cluster.cli.bench_options import Html, Repeat
from cluster.cli.bench_output import Watch, present
from cluster.cli.options import ConfigFile, Format, Output, Settings, root
from cluster.cli.output import messages
from cluster.cli.progress import Steps
from cluster.local import settle
from cluster.prepare import pack

INSTANCES = 2


def migration(
    context: typer.Context,
    file: ConfigFile = None,
    model: ModelPath = None,
    dtype: Dtype = None,
    settings: Settings = None,
    contexts: Annotated[
        str, typer.Option("--contexts", help="Tokens behind the requests that move.")
    ] = "128,512,2048",
    handoff: Annotated[
        int,
        typer.Option("--handoff", min=0, help="Tokens of a prompt that is handed over, too; 0: none is."),
    ] = 1024,
    pairs: Annotated[
        int,
        typer.Option("--pairs", min=1, help="Prompts that are handed over, each beside one that stays."),
    ] = 20,
    repeat: Repeat = 5,
    html: Html = None,
    output: Output = Format.TABLE,
) -> None:
    """Move requests between two engines: live, as they stand still, recomputed; hand prompts over."""
    forced: dict[str, object] = {"gateway.port": 0, "engine.prefix_cache": False}
    quiet = root(context).quiet
    steps = Steps(messages(quiet=quiet))
    config = settle(config_of(file, model, dtype, settings, forced), steps.step)
    pack(config, steps.step)
    # They bring torch, which reads the number of its threads from what has just been settled.
    from cluster.bench.migration import measure
    from cluster.bench.migration_sections import migration_sections
    from cluster.cores import threads_of

    watch = Watch(messages(quiet=quiet))
    with watch:
        report = measure(
            config,
            threads_of(config, INSTANCES),
            whole(contexts, "--contexts"),
            repeat,
            handoff,
            pairs,
            begin=watch.begin,
            say=watch.say,
        )
    present(report, migration_sections(report), "tandem bench migration", html, output)
