"""tandem plan: how many instances of each role serve a trace best on so many GPUs, and the config for it."""

from __future__ import annotations

from itertools import product
from pathlib import Path
from typing import Annotated, Any

import typer
import yaml

from cluster.cli.options import ConfigFile, Format, Output, Settings, above_zero, overrides, root, writable
from cluster.cli.output import messages, out, print_data, table
from cluster.cli.progress import Steps
from cluster.config import Config, load
from cluster.config_yaml import read_document
from cluster.planning import Simulated, refuse_what_is_not_built, settings_of
from cluster.simulation import Hardware
from cluster.units import parse_duration
from engine.cost_model import CostModel
from engine.errors import ConfigError
from engine.request import SLO
from global_scheduler.goodput import (
    Arm,
    Candidate,
    Parallel,
    Plan,
    Search,
    choose,
    high_affinity,
    low_affinity,
    together,
)
from global_scheduler.placement import DECODE, PREFILL
from simulator.cost_tables.load import load as load_cost
from simulator.network import LinkSettings
from simulator.workload.named import workload

SHOWN = 12


def command(
    context: typer.Context,
    trace: Annotated[str, typer.Option("--trace", metavar="FILE", help="As in `tandem simulate`.")],
    slo: Annotated[
        str, typer.Option("--slo", metavar="ttft=TIME,tpot=TIME", help="Both must be met by a request.")
    ],
    gpus: Annotated[int, typer.Option("--gpus", min=1, help="GPUs there are.")],
    cost: Annotated[
        str,
        typer.Option(
            "--cost",
            metavar="TABLE[:KEY=VALUE,…]",
            help="Steps of one instance, as in `tandem simulate`; `tensor` is set for each parallelism.",
        ),
    ],
    file: ConfigFile = None,
    settings: Settings = None,
    write: Annotated[
        Path | None,
        typer.Option(
            "--write", "-w", metavar="FILE", callback=writable, help="Write the config of the best plan."
        ),
    ] = None,
    node: Annotated[int, typer.Option("--node-gpus", min=1, help="GPUs of one node.")] = 8,
    tensor: Annotated[list[int] | None, typer.Option("--tensor", min=1, help="Degrees to try.")] = None,
    pipeline: Annotated[list[int] | None, typer.Option("--pipeline", min=1, help="Degrees to try.")] = None,
    bandwidth: Annotated[
        float, typer.Option(callback=above_zero, help="Between nodes, each instance's link, in GB/s.")
    ] = 50.0,
    node_bandwidth: Annotated[
        float, typer.Option(callback=above_zero, help="Within a node, in GB/s.")
    ] = 300.0,
    shared: Annotated[bool, typer.Option("--shared-link", help="One link between nodes for all.")] = False,
    kv_tokens: Annotated[int, typer.Option(min=1, help="KV cache of one GPU, in tokens.")] = 66_144,
    kv_bytes: Annotated[int, typer.Option(min=1, help="KV of one token, in bytes.")] = 131_072,
    attainment: Annotated[float, typer.Option(min=0.01, max=1.0, help="Share that must meet both.")] = 0.9,
    requests: Annotated[int, typer.Option(min=10, help="So many of the trace; few do not overload.")] = 1000,
    seed: Annotated[int, typer.Option(help="Of made workloads.")] = 0,
    output: Output = Format.TABLE,
) -> None:
    """Search pools for goodput per GPU in the simulator, apart and together, and write the best as a config.

    Within a node both of DistServe's searches apply; across nodes a handoff goes over `--bandwidth`.
    """
    config = load(file, overrides(settings))
    objectives = _slo(slo)
    steps = Steps(messages(quiet=root(context).quiet))
    with steps.step(f"reading {trace}"):
        arrivals = workload(trace, seed=seed, requests=requests)
    parallels = [Parallel(*degrees) for degrees in product(tensor or [1], pipeline or [1])]
    costs = {one: _cost(cost, one) for one in parallels}
    search = Search(attainment=attainment)

    def measure(links: LinkSettings) -> Simulated:
        hardware = Hardware(
            {PREFILL: costs[parallels[0]], DECODE: costs[parallels[0]]}, kv_tokens, kv_bytes, links
        )
        return Simulated(config, hardware, costs, arrivals, objectives)

    across = LinkSettings(bandwidth * 1e9, 1e-3 if shared else 5e-4, shared=shared)
    inside = LinkSettings(node_bandwidth * 1e9)
    wide, near = measure(inside if gpus <= node else across), measure(inside)
    found: list[tuple[str, Candidate]] = []
    searches = {
        "together": together(gpus, parallels, near, search),
        "high affinity": high_affinity(gpus, parallels, wide, search),
    }
    if gpus > node:
        searches["low affinity"] = low_affinity(gpus, node, parallels, near, search)
    for name, candidates in searches.items():
        with steps.step(f"searching: {name}"):
            for candidate in candidates:
                found.append((name, candidate))
                steps.say(f"{name}: {candidate.arm}: {candidate.goodput:.2f} requests/s")
    try:
        plan = choose((candidate for _, candidate in found), gpus)
    except ValueError as error:
        raise ConfigError(f"--slo {slo}: {error}") from error
    if write is not None:
        refuse_what_is_not_built(plan.best.arm)
        write.write_text(_yaml(config, file, plan))
    _print(plan, {candidate.arm: name for name, candidate in found}, output)


def _print(plan: Plan, algorithms: dict[Arm, str], output: Format) -> None:
    if output.is_data:
        print_data(output, "Plan", [{"reason": plan.reason, "candidates": [
            {"plan": str(one.arm), "search": algorithms[one.arm], "prefill": one.arm.prefills,
             "decode": one.arm.decodes, "gpus": one.arm.gpus, "goodput": one.goodput, "per_gpu": one.per_gpu}
            for one in plan.candidates]}])  # fmt: skip
        return
    rows = table("PLAN", "SEARCH", "GPUS", "REQUESTS/S IN TIME", "A GPU")
    for one in plan.candidates[:SHOWN]:
        cells = f"{one.goodput:.2f}", f"{one.per_gpu:.3f}"
        rows.add_row(str(one.arm), algorithms[one.arm], str(one.arm.gpus), *cells)
    out().print(rows)
    out().print(("colocate" if plan.best.arm.together else "disaggregate") + f": {plan.reason}")


def _yaml(config: Config, file: Path | None, plan: Plan) -> str:
    """The given file with the pools of the plan; what it does not say stays unsaid."""
    data: dict[str, Any] = {}
    if file is not None:
        data = dict(read_document(file.read_text(), str(file)).data)
    for dotted, value in settings_of(config, plan.best.arm).items():
        here = data
        *sections, key = dotted.split(".")
        for section in sections:
            here = here.setdefault(section, {})
        here[key] = value
    return f"# {plan.reason}\n" + yaml.safe_dump(data, sort_keys=False, allow_unicode=True)


def _cost(name: str, parallel: Parallel) -> CostModel:
    """The table at that parallelism; one GPU takes it as it is."""
    degrees = {}
    if parallel.tensor > 1:
        degrees["tensor"] = str(parallel.tensor)
    if parallel.pipeline > 1:
        degrees["pipeline"] = str(parallel.pipeline)
    return load_cost(name + "".join(f"{':' if i == 0 and ':' not in name else ','}{k}={v}"
                                    for i, (k, v) in enumerate(degrees.items())))  # fmt: skip


def _slo(text: str) -> SLO:
    """Raises ConfigError."""
    given: dict[str, float] = {}
    for item in filter(None, text.split(",")):
        key, _, value = item.partition("=")
        try:
            given[key] = parse_duration(value)
        except ValueError as error:
            raise ConfigError(f"--slo: {item!r} is no duration such as ttft=400ms") from error
    if not given or given.keys() - {"ttft", "tpot"}:
        raise ConfigError(f"--slo {text!r}: say ttft=…,tpot=… with units")
    return SLO(given.get("ttft"), given.get("tpot"))
