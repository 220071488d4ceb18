"""tandem bench decisions: how long the scheduler thinks, and whether what it decided comes out again."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cluster.bench.decisions import SIZES, measure
from cluster.bench.machine import Machine
from cluster.cli.failures import Exit, Failure
from cluster.cli.options import ConfigFile, Format, Output, Settings, overrides, root
from cluster.cli.output import messages, out, print_data, table
from cluster.cli.progress import Steps
from cluster.config import load
from cluster.policies import scheduler_settings
from cluster.recording import read_tape
from global_scheduler.replay import Agreement, replay
from global_scheduler.scheduler import Scheduler

SHOWN = 10
"""Disagreements that are listed."""


def decisions(
    context: typer.Context,
    file: ConfigFile = None,
    settings: Settings = None,
    instances: Annotated[
        list[int] | None, typer.Option("--instances", min=2, help="Sizes of cluster; may be repeated.")
    ] = None,
    count: Annotated[int, typer.Option("--decisions", min=10, help="How many of each size.")] = 10_000,
    tape: Annotated[
        Path | None,
        typer.Option("--replay", metavar="FILE", help="Decide again what `scheduler.record` recorded."),
    ] = None,
    output: Output = Format.TABLE,
) -> None:
    """Time placements of a config's policies, with the statuses of all instances in between, on one core."""
    config = load(file, overrides(settings))
    steps = Steps(messages(quiet=root(context).quiet))
    if tape is not None:
        with steps.step(f"deciding again what {tape} holds"):
            found = replay(read_tape(tape), Scheduler(scheduler_settings(config)))
        _agreement(found, output)
        return
    results = []
    for size in instances or SIZES:
        with steps.step(f"{count:,} decisions over {size} instances"):
            results.append(measure(scheduler_settings(config), size, count))
    if output.is_data:
        print_data(output, "Decisions", [result.model_dump(mode="json") for result in results])
        return
    rows = table("INSTANCES", "P50", "P99", "SLOWEST", "DECISIONS A SECOND")
    for result in results:
        times = (result.seconds.p50, result.seconds.p99, result.seconds.most)
        cells = [f"{(one or 0.0) * 1e3:.3f} ms" for one in times]
        rows.add_row(str(result.instances), *cells, f"{result.per_second:,.0f}")
    out().print(Machine.here().line())
    out().print(f"placement: {config.scheduler.placement}, {count:,} decisions of each size")
    out().print(rows)


def _agreement(agreement: Agreement, output: Format) -> None:
    wrong = agreement.disagreements
    if output.is_data:
        fields = {"decisions": agreement.decisions, "disagreements": len(wrong), "share": agreement.share}
        print_data(output, "Agreement", [fields])
    else:
        out().print(f"{agreement.decisions - len(wrong)} of {agreement.decisions} decisions came out alike")
        for one in wrong[:SHOWN]:
            recorded = (one.recorded.prefill, one.recorded.decode, one.recorded.refused)
            out().print(f"  {one.recorded.summary.id}: {' '.join(recorded)} → {' '.join(one.again)}")
    if wrong:
        raise Failure(
            Exit.FAILED,
            "disagreement",
            f"{len(wrong)} of {agreement.decisions} decisions came out otherwise",
            "replay with the settings of the recorded cluster",
            after_data=True,
        )
