"""tandem simulate: yesterday's requests through a config, on a virtual clock."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from enum import StrEnum
from itertools import count
from pathlib import Path
from typing import Annotated, Any

import typer

from cluster.cli.options import (
    ConfigFile,
    Settings,
    above_zero,
    chosen,
    not_negative,
    overrides,
    root,
    seconds,
)
from cluster.cli.output import messages, out, table
from cluster.cli.progress import Advance, Steps
from cluster.config import load
from cluster.simulation import Hardware, setup_of
from engine.cost_model import CostModel
from engine.errors import ConfigError
from global_scheduler.placement import DECODE, PREFILL, Placement
from global_scheduler.scheduler import Scheduler
from global_scheduler.view import Summary
from simulator.cost_tables.load import load as load_cost
from simulator.network import LinkSettings
from simulator.page import Run, page
from simulator.report import as_json, summarise
from simulator.setup import Setup
from simulator.simulate import simulate
from simulator.workload.named import workload

LOOKS = 200
"""How often a simulation tells how far it is."""


class Form(StrEnum):
    TABLE = "table"
    JSON = "json"
    HTML = "html"


Costs = Annotated[
    list[str],
    typer.Option(
        "--cost",
        metavar="[POOL=]TABLE[:KEY=VALUE,…]",
        help="How long steps take: a CSV of iterations (system=, model=), a JSON of coefficients (model=, "
        "tensor=) or the folder of an operator profile (layers=). Twice, with POOL=, for unlike pools.",
    ),
]


MaxTokens = Annotated[
    int | None,
    typer.Option(
        min=1,
        help="What every request asks for at most; longer answers end there. Without it each asks for just "
        "the tokens that its answer has in the trace, which no client knows.",
    ),
]


def command(
    context: typer.Context,
    trace: Annotated[
        str,
        typer.Option(
            "--trace",
            metavar="FILE",
            help="Azure, Mooncake, BurstGPT or own CSV, or made:rate=5,prompt=512,output=64,requests=1000.",
        ),
    ],
    cost: Costs,
    file: ConfigFile = None,
    compare: Annotated[
        Path | None, typer.Option("--compare", metavar="FILE", help="A second config, side by side.")
    ] = None,
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
    gpus: Annotated[float, typer.Option(callback=not_negative, help="GPUs of one instance.")] = 1.0,
    overhead: Annotated[
        float, typer.Option(callback=not_negative, help="Time of the engine itself in each step, in ms.")
    ] = 0.0,
    ttft: Annotated[
        float | None, typer.Option(metavar="TIME", parser=seconds, help="Objective for the first token.")
    ] = None,
    tpot: Annotated[
        float | None, typer.Option(metavar="TIME", parser=seconds, help="Objective for each later one.")
    ] = None,
    max_tokens: MaxTokens = None,
    output: Annotated[
        Form, typer.Option("--output", "-o", help="How to print.", callback=chosen)
    ] = Form.TABLE,
) -> None:
    """Try a config on a trace without a cluster: same scheduler, queues and engines, on a virtual clock."""
    steps = Steps(messages(quiet=root(context).quiet))
    with steps.step(f"reading {trace}"):
        arrivals = workload(trace, seed=seed, speed=speed, requests=requests)
    if not arrivals:
        raise ConfigError(f"{trace}: there are no requests in it")
    hardware = Hardware(
        costs_of(cost), kv_tokens, kv_bytes, LinkSettings(bandwidth * 1e9), gpus, overhead / 1000
    )
    configs = {str(file or "config"): load(file, overrides(settings))}
    if compare is not None:
        configs[str(compare)] = load(compare, overrides(settings))
    runs = []
    short = {Path(name).name for name in configs}
    for name, config in configs.items():
        with steps.step(f"simulating {len(arrivals):,} requests with {name}") as advance:
            setup = watched(setup_of(config, hardware, max_tokens), len(arrivals), advance)
            cluster = simulate(setup, arrivals)
            report = summarise(cluster, ttft=ttft, tpot=tpot)
        report |= {"trace": trace, "seed": seed, "speed": speed}
        runs.append(Run(Path(name).name if len(short) == len(configs) else name, cluster, report))
    if output is Form.HTML:
        typer.echo(page(runs))
    elif output is Form.JSON:
        typer.echo(as_json({run.name: run.report for run in runs} if compare else runs[0].report), nl=False)
    else:
        _print(runs)


def watched(setup: Setup, requests: int, advance: Advance) -> Setup:
    """The same setup, which tells how many of the requests have a place."""
    place, placed, each = setup.dispatch or Scheduler.place, count(1), max(1, requests // LOOKS)

    def told(scheduler: Scheduler, summary: Summary, now: float) -> Placement:
        number = next(placed)
        if number % each == 0:
            advance(min(number, requests), requests)
        return place(scheduler, summary, now)

    return replace(setup, dispatch=told)


def costs_of(given: list[str]) -> dict[str, CostModel]:
    """The cost model of each pool. Raises ConfigError where one is missing."""
    costs: dict[str, CostModel] = {}
    for text in given:
        pool, equals, rest = text.partition("=")
        if equals and pool in (PREFILL, DECODE):
            costs[pool] = load_cost(rest)
        else:
            costs |= {each: load_cost(text) for each in (PREFILL, DECODE) if each not in costs}
    missing = {PREFILL, DECODE} - costs.keys()
    if missing:
        raise ConfigError(f"--cost: nothing says how long steps of the {' and '.join(missing)} pool take")
    return costs


LINES = (
    ("requests finished", "requests.finished", "{:,.0f}"),
    ("requests refused", "requests.refused", "{:,.0f}"),
    ("time to first token, mean", "ttft.mean", "{:.3f} s"),
    ("time to first token, p99", "ttft.p99", "{:.3f} s"),
    ("time per output token, mean", "tpot.mean", "{:.4f} s"),
    ("time between tokens, p99", "tbt.p99", "{:.4f} s"),
    ("end to end, mean", "e2e.mean", "{:.2f} s"),
    ("objectives met", "slo.attainment", "{:.1%}"),
    ("goodput per GPU", "goodput_per_gpu", "{:.3f} requests/s"),
    ("output tokens", "throughput.output_tokens", "{:,.0f} a second"),
    ("prefill pool busy", "pools.prefill.busy", "{:.0%}"),
    ("decode pool busy", "pools.decode.busy", "{:.0%}"),
    ("preemptions", "preemptions", "{:,.0f}"),
    ("handoffs kept at the source", "handoffs.kept", "{:,.0f}"),
    ("migrations", "migrations.moved", "{:,.0f}"),
    ("migration downtime, p99", "migrations.downtime.p99", "{:.4f} s"),
    ("times a pool was resized", "scale_events", "{:,.0f}"),
    ("GPU hours", "gpu_hours", "{:.2f}"),
    ("requests lost", "requests.lost", "{:,.0f}"),
    ("tokens duplicated", "requests.duplicated_tokens", "{:,.0f}"),
)


def _print(runs: list[Run]) -> None:
    rows = table("", *(run.name for run in runs))
    for label, path, form in LINES:
        rows.add_row(label, *(form.format(value_at(run.report, path)) for run in runs))
    out().print(rows)


def value_at(report: Mapping[str, Any], path: str) -> float:
    """A number in a report by its path; of a list, its length; 0 for what is not there."""
    value: Any = report
    for key in path.split("."):
        value = value.get(key, 0.0)
    return float(len(value) if isinstance(value, list) else value)
