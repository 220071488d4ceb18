"""tandem profile: what steps cost on this machine, for `tandem simulate`, `tandem plan` and the config."""

from __future__ import annotations

import platform
from itertools import count
from pathlib import Path
from typing import Annotated

import typer

from cluster.cli.bench_engine import whole
from cluster.cli.options import ConfigFile, Format, Output, Settings, overrides, root, writable
from cluster.cli.output import messages, out, print_data
from cluster.cli.progress import Steps
from cluster.config import load
from cluster.installation import installed_version
from simulator.cost_tables.fit import error, fit


def command(
    context: typer.Context,
    write: Annotated[
        Path,
        typer.Option(
            "--write", "-w", metavar="FILE.csv", callback=writable, help="Where the table of steps goes."
        ),
    ],
    file: ConfigFile = None,
    settings: Settings = None,
    instances: Annotated[
        int, typer.Option("--instances", min=1, help="Instances that will share this machine's cores.")
    ] = 1,
    system: Annotated[
        str,
        typer.Option(
            "--system", help="The name of the machine in the table.", show_default="this host's name"
        ),
    ] = platform.node() or "here",
    batches: Annotated[str, typer.Option("--batches", help="Of decode steps.")] = "1,2,4,8,16,32",
    contexts: Annotated[str, typer.Option("--contexts", help="Of decode steps.")] = "64,256,1024,2048",
    lengths: Annotated[str, typer.Option("--lengths", help="Of chunks.")] = "1,16,64,128,256,512",
    cached: Annotated[str, typer.Option("--cached", help="Tokens before a chunk, beside none.")] = "512,1024",
    output: Output = Format.TABLE,
) -> None:
    """Measure an instance's steps with this config's model, in this process: stop what else runs here."""
    # Imported late: torch takes seconds, and this module is loaded for every verb.
    from cluster import profiling
    from cluster.cores import threads_of
    from cluster.instance import load_runner

    config = load(file, overrides(settings))
    grid = profiling.Grid(
        whole(batches, "--batches"),
        whole(contexts, "--contexts"),
        whole(lengths, "--lengths"),
        (0, *whole(cached, "--cached")),
    )
    show = Steps(messages(quiet=root(context).quiet))
    with show.step("loading the model"):
        runner, device = load_runner(config, threads_of(config, instances))
    name = config.model.name or runner.assets.name
    most, measured = len(grid.lengths) * len(grid.cached) + len(grid.batches) * len(grid.contexts), count(1)
    with show.step("measuring steps") as advance:

        def say(line: str) -> None:
            advance(next(measured), most)
            show.say(line)

        steps = profiling.measure(runner, grid, say)
    write.write_text(profiling.table(steps, system=system, model=name, version=installed_version()))
    points = [(step.work, step.seconds) for step in steps]
    cost = fit(points)
    off = error(cost, points)
    fitted = {
        "base": cost.base * 1e3,
        "per_token": cost.per_token * 1e3,
        "per_context": cost.per_context * 1e3,
    }
    option = f"{write}:system={system},model={name}"
    if output.is_data:
        facts = {"table": option, "device": device, "points": len(steps), "step_cost": fitted}
        print_data(output, "Profile", [facts | {"error": off}])
        return
    out().print(f"{len(steps)} steps measured on {device}; use them with --cost {option}")
    out().print(f"# engine.step_cost, median error {off:.0%}")
    out().print("engine:\n  step_cost:")
    for key, value in fitted.items():
        out().print(f"    {key}: {value:.6f}")
