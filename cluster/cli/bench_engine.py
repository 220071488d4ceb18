"""tandem bench engine and overhead: the engine without a server, and what a server adds to it."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cluster.bench import serve as serving
from cluster.bench.machine import Machine
from cluster.bench.report import Server
from cluster.bench.result import Result
from cluster.bench.serve_sections import result_line
from cluster.bench.target import Target, connect
from cluster.bench.workload import Objectives
from cluster.cli.bench_options import Html, Repeat
from cluster.cli.bench_output import Watch, present
from cluster.cli.bench_servers import STANDARD
from cluster.cli.connect import certificates, trust
from cluster.cli.failures import Exit, Failure
from cluster.cli.options import ConfigFile, Format, Output, Settings, Wait, overrides, root
from cluster.cli.output import messages
from cluster.cli.progress import Steps
from cluster.cli.up import signals
from cluster.config import Config, load
from cluster.local import LocalCluster, settle
from cluster.local_state import LocalState, only_one
from cluster.prepare import pack
from cluster.tls import Tls

if TYPE_CHECKING:
    from cluster.bench.overhead import OverheadReport

# What the bare engine is asked to meet: nothing, it has no users.
NO_OBJECTIVES = Objectives(float("inf"), float("inf"))
REQUEST_TIMEOUT = 600.0
INSTANCES = 2
"""Of the cluster that `overhead` starts: one works, the other pool may not be empty."""
COLOCATED = 10**9
"""A length up to which every prompt is prefilled where it decodes."""

ModelPath = Annotated[
    str | None, typer.Option("--model", metavar="PATH", help="A Hugging Face folder or a GGUF file.")
]
Dtype = Annotated[str | None, typer.Option("--dtype", help="Numbers to compute with: model.dtype.")]


def engine(
    context: typer.Context,
    tests: Annotated[
        list[str] | None, typer.Argument(metavar="TEST…", help="Workloads, as of `tandem bench serve`.")
    ] = None,
    file: ConfigFile = None,
    model: ModelPath = None,
    dtype: Dtype = None,
    settings: Settings = None,
    batches: Annotated[str, typer.Option("--batches", help="Of decode steps.")] = "1,2,4,8,16,32,64",
    contexts: Annotated[
        str, typer.Option("--contexts", help="Of decode steps; what does not fit the KV cache is left out.")
    ] = "128,512,1024,2048,4096,8192",
    lengths: Annotated[str, typer.Option("--lengths", help="Of prompts.")] = "32,128,512,1024,2048",
    repeat: Repeat = 3,
    html: Html = None,
    output: Output = Format.TABLE,
) -> None:
    """Measure the engine in this process: steps beside this machine's limits, and whole workloads."""
    plans = serving.plans_of(tests or STANDARD, serving.Shape())
    quiet = root(context).quiet
    steps = Steps(messages(quiet=quiet))
    config = settle(config_of(file, model, dtype, settings, {"gateway.port": 0}), steps.step)
    pack(config, steps.step)
    # They bring torch, which takes seconds to import.
    from cluster.bench.engine import Grid, measure
    from cluster.bench.engine_sections import engine_sections
    from cluster.cores import threads_of

    batch, context_length = whole(batches, "--batches"), whole(contexts, "--contexts")
    grid = Grid(batch, context_length, whole(lengths, "--lengths"), repeat)
    watch = Watch(messages(quiet=quiet))
    with watch:
        report = measure(
            config,
            threads_of(config, 1),
            grid,
            plans,
            NO_OBJECTIVES,
            begin=watch.begin,
            say=watch.say,
            took=lambda result: watch.say(result_line(result)),
        )
    present(report, engine_sections(report), "tandem bench engine", html, output)


def overhead(
    context: typer.Context,
    tests: Annotated[
        list[str] | None, typer.Argument(metavar="TEST…", help="Workloads, as of `tandem bench serve`.")
    ] = None,
    file: ConfigFile = None,
    model: ModelPath = None,
    dtype: Dtype = None,
    settings: Settings = None,
    repeat: Repeat = 5,
    wait: Wait = "300s",  # type: ignore[assignment]
    html: Html = None,
    output: Output = Format.TABLE,
) -> None:
    """Start a cluster that decodes where it prefills, and measure it in turn with its bare engine."""
    plans = serving.plans_of(tests or STANDARD, serving.Shape())
    html = None if html is None else html.absolute()
    forced: dict[str, object] = {
        "pools.prefill.replicas": 1,
        "pools.decode.replicas": 1,
        "scheduler.local_prefill_tokens": COLOCATED,
        "gateway.port": 0,
    }
    config = config_of(file, model, dtype, settings, forced)
    console = messages(quiet=root(context).quiet)
    steps = Steps(console)
    shown = certificates(root(context).tls)
    with only_one(), signals() as interrupt:
        settled = settle(config, steps.step)
        interrupt.quietly()  # until there is somebody to remove the folder that a cluster makes
        cluster = LocalCluster(settled)
        try:
            with interrupt.raising():
                state = cluster.start(steps.step, wait)
                report = _compare(cluster.config, state, shown, plans, repeat, Watch(console))
        finally:
            cluster.stop(drain=False)
    from cluster.bench.engine_sections import overhead_sections

    present(report, overhead_sections(report), "tandem bench overhead", html, output)


def _compare(
    config: Config,
    state: LocalState,
    shown: Tls | None,
    plans: list[serving.Plan],
    repeat: int,
    watch: Watch,
) -> OverheadReport:
    # They bring torch, which reads the number of its threads from what the start has just settled.
    from cluster.bench.engine import NAME, bare_engine
    from cluster.bench.load import Loaded
    from cluster.bench.overhead import report
    from cluster.cores import threads_of
    from cluster.instance import load_runner

    machine = Machine.here()
    threads = threads_of(config, INSTANCES)
    runner, _ = load_runner(config, threads)
    bare = bare_engine(config, runner)

    async def main() -> tuple[Target, list[Result]]:
        # Without its process, which is this one: it would count the bare engine too.
        url = state.gateways[0]
        target = await connect("tandem", url, verify=trust(url, shown))
        watch.expect(2 * len(plans) * repeat)
        results = await serving.measure(
            [Loaded(target, REQUEST_TIMEOUT), bare],
            plans,
            repeat,
            NO_OBJECTIVES,
            begin=watch.begin,
            took=lambda result: watch.say(result_line(result)),
        )
        return target, results

    try:
        with watch:
            target, results = asyncio.run(main())
    finally:
        bare.close()
    model = config.model.name or runner.assets.name
    servers = [
        Server(name=target.name, url=target.endpoint.url, model=target.model, prompts=target.prompts),
        Server(name=NAME, url="in this process", model=model, prompts="tokens"),
    ]
    settings = {
        "dtype": runner.numbers,
        "threads": str(threads),
        "token_budget": str(config.engine.token_budget),
        "repeat": str(repeat),
    }
    return report(machine, settings, servers, results)


def config_of(
    file: Path | None,
    model: str | None,
    dtype: str | None,
    settings: list[str] | None,
    forced: dict[str, object],
) -> Config:
    named = {"model.path": model, "model.dtype": dtype}
    given = {key: value for key, value in named.items() if value is not None}
    return load(file, overrides(settings) | given | forced)


def whole(text: str, option: str) -> tuple[int, ...]:
    """Whole numbers above 0, separated by commas."""
    parts = text.split(",")
    if not all(part.strip().isdigit() and int(part) > 0 for part in parts):
        raise Failure(Exit.USAGE, "usage", f"{option} expects numbers such as 1,8,64, got {text!r}")
    return tuple(int(part) for part in parts)
