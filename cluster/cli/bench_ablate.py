"""tandem bench ablate: each policy of a config switched off in turn, on one trace, in the simulator."""

from __future__ import annotations

from typing import Annotated

import typer

from cluster.ablation import ablate as ablated
from cluster.cli.options import ConfigFile, Format, Output, Settings, above_zero, overrides, root, seconds
from cluster.cli.output import messages, out, print_data, table
from cluster.cli.progress import Steps
from cluster.cli.simulate import Costs, MaxTokens, costs_of, value_at
from cluster.config import load
from cluster.simulation import Hardware
from engine.errors import ConfigError
from simulator.network import LinkSettings
from simulator.workload.named import workload

COLUMNS = (
    ("TTFT MEAN", "ttft.mean", "{:.3f} s"),
    ("TTFT P99", "ttft.p99", "{:.2f} s"),
    ("TBT P99", "tbt.p99", "{:.3f} s"),
    ("E2E MEAN", "e2e.mean", "{:.2f} s"),
    ("MET", "slo.attainment", "{:.1%}"),
    ("PREEMPTED", "preemptions", "{:,.0f}"),
    ("REFUSED", "requests.refused", "{:,.0f}"),
    ("GPU HOURS", "gpu_hours", "{:.2f}"),
)


def ablate(
    context: typer.Context,
    trace: Annotated[str, typer.Option("--trace", metavar="FILE", help="As for `tandem simulate`.")],
    cost: Costs,
    file: ConfigFile = None,
    settings: Settings = None,
    seed: Annotated[int, typer.Option(help="Of made workloads.")] = 0,
    speed: Annotated[
        float, typer.Option(callback=above_zero, help="Let requests come so many times as fast.")
    ] = 1.0,
    requests: Annotated[int | None, typer.Option(min=1, help="Only so many, the first.")] = None,
    kv_tokens: Annotated[int, typer.Option(min=1, help="KV cache of an instance, in tokens.")] = 400_000,
    kv_bytes: Annotated[int, typer.Option(min=1, help="KV of one token, in bytes.")] = 131_072,
    bandwidth: Annotated[
        float, typer.Option(callback=above_zero, help="Of each instance's link, in GB/s.")
    ] = 50.0,
    ttft: Annotated[
        float, typer.Option(metavar="TIME", parser=seconds, help="Objective for the first token.")
    ] = "1s",  # type: ignore[assignment]
    tpot: Annotated[
        float, typer.Option(metavar="TIME", parser=seconds, help="Objective for each later one.")
    ] = "100ms",  # type: ignore[assignment]
    max_tokens: MaxTokens = None,
    output: Output = Format.TABLE,
) -> None:
    """Switch off each policy that a config has on, one at a time, and see what it is worth on one trace."""
    steps = Steps(messages(quiet=root(context).quiet))
    with steps.step(f"reading {trace}"):
        arrivals = workload(trace, seed=seed, speed=speed, requests=requests)
    if not arrivals:
        raise ConfigError(f"{trace}: there are no requests in it")
    hardware = Hardware(costs_of(cost), kv_tokens, kv_bytes, LinkSettings(bandwidth * 1e9))
    objectives = {"ttft": ttft, "tpot": tpot}
    config = load(file, overrides(settings))
    with steps.step(f"simulating {len(arrivals):,} requests, and again without each policy"):
        reports = ablated(config, hardware, arrivals, objectives, max_tokens)
    if output.is_data:
        print_data(output, "Ablation", [{"name": name, "report": report} for name, report in reports.items()])
        return
    rows = table("", *(name for name, _, _ in COLUMNS))
    for name, report in reports.items():
        rows.add_row(name, *(form.format(value_at(report, path)) for _, path, form in COLUMNS))
    out().print(rows)
