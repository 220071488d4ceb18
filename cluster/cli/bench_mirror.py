"""tandem bench mirror: how well the simulator foretells the cluster that runs here."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Annotated

import typer

from cluster import control_pb2 as pb
from cluster.bench.mirror import MirrorReport, Serving
from cluster.bench.mirror import mirror as mirrored
from cluster.bench.target import Target, connect
from cluster.bench.workload import Workload
from cluster.cli.bench_options import (
    ApiKey,
    LongestAnswer,
    LongestPrompt,
    RequestTimeout,
    Shrink,
    Speed,
    TraceFile,
    workload_of,
)
from cluster.cli.bench_output import Watch
from cluster.cli.connect import certificates, control, trust
from cluster.cli.failures import Exit, Failure
from cluster.cli.options import ConfigFile, Format, Output, Settings, above_zero, overrides, root
from cluster.cli.output import messages, out, print_data, table
from cluster.cli.simulate import Costs, costs_of
from cluster.config import Config, load
from cluster.simulation import Hardware, setup_of
from simulator.network import LinkSettings
from simulator.setup import Setup


def mirror(
    context: typer.Context,
    trace: TraceFile,
    cost: Costs,
    file: ConfigFile = None,
    settings: Settings = None,
    speed: Speed = 1.0,
    shrink: Shrink = 1.0,
    longest_prompt: LongestPrompt = None,
    longest_answer: LongestAnswer = None,
    requests: Annotated[int, typer.Option("--requests", min=1, help="Only the first so many.")] = 100,
    kv_bytes: Annotated[int, typer.Option(min=1, help="KV of one token, in bytes.")] = 131_072,
    bandwidth: Annotated[float, typer.Option(callback=above_zero, help="Between instances, in GB/s.")] = 2.0,
    api_key: ApiKey = None,
    within: RequestTimeout = "600s",  # type: ignore[assignment]
    output: Output = Format.TABLE,
) -> None:
    """Replay a trace against the local cluster, simulate it from the trace and a profile, and compare.

    The cluster runs with the same -f and --set, scheduler.record among them;
    `tandem profile` makes the table.
    """
    config = load(file, overrides(settings))
    if config.scheduler.record is None:
        raise Failure(
            Exit.USAGE,
            "usage",
            "nothing says where the cluster records its decisions",
            "start it with --set scheduler.record=FILE and give this command the same",
        )
    workload = workload_of(
        trace,
        speed=speed,
        shrink=shrink,
        longest_prompt=longest_prompt,
        longest_answer=longest_answer,
        requests=requests,
    )
    with control(context, None, None) as client:
        status = client.status()
    costs, kv_tokens = costs_of(cost), _kv_tokens(status)

    def setup(serving: Serving) -> Setup:
        links = LinkSettings(bandwidth * 1e9, serving.message)
        return setup_of(config, Hardware(costs, kv_tokens, kv_bytes, links, overhead=serving.step))

    shown = certificates(root(context).tls)

    def reach(url: str) -> Awaitable[Target]:
        return connect("tandem", url, api_key=api_key, verify=trust(url, shown))

    watch = Watch(messages(quiet=root(context).quiet))
    with watch:
        report = asyncio.run(_run(config, workload, setup, status, reach, within, watch))
    report = report.model_copy(update={"settings": {"trace": trace.name, "speed": f"{speed:g}"}})
    if output.is_data:
        print_data(output, "MirrorReport", [report.model_dump(mode="json")])
    else:
        _print(report)


async def _run(
    config: Config,
    workload: Workload,
    setup: Callable[[Serving], Setup],
    status: pb.ClusterStatus,
    reach: Callable[[str], Awaitable[Target]],
    within: float,
    watch: Watch,
) -> MirrorReport:
    target = await reach(status.gateways[0].url)
    advance = watch.begin(f"replaying {workload.name}")
    assert config.scheduler.record is not None
    instances = {one.name: one.role for one in status.instances if one.state == "ready"}
    tape = Path(config.scheduler.record)
    return await mirrored(target, workload, setup, tape, instances, within=within, advance=advance)


def _kv_tokens(status: pb.ClusterStatus) -> int:
    """What the smallest instance can hold. Raises Failure if the cluster is not ready."""
    ready = [one.status for one in status.instances if one.state == "ready"]
    if not ready or not status.gateways:
        raise Failure(Exit.UNREACHABLE, "unreachable", "the cluster is not ready", "try again")
    return min(one.blocks_total * one.block_size for one in ready)


def _print(report: MirrorReport) -> None:
    rows = table("", "MEASURED", "SIMULATED", "OFF BY")
    for mean in report.means:
        times = (f"{mean.measured * 1e3:.2f} ms", f"{mean.simulated * 1e3:.2f} ms")
        rows.add_row(f"{mean.name}, mean", *times, f"{mean.error:+.1%}")
    out().print(report.machine.line())
    out().print(f"{report.alike} of {report.placements} placements alike ({report.share:.1%})")
    out().print(rows)
    serving = report.serving
    out().print(
        f"serving adds {serving.step * 1e3:.2f} ms to a step and {serving.message * 1e3:.2f} ms to a message"
    )
