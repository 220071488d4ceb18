"""tandem bench: servers under load, the bare engine, what serving adds, moves, and the GPU's kernels."""

from __future__ import annotations

import typer

from cluster.cli.bench_ablate import ablate
from cluster.cli.bench_agreement import agreement
from cluster.cli.bench_decisions import decisions
from cluster.cli.bench_engine import engine, overhead
from cluster.cli.bench_gpu import gpu, kernels
from cluster.cli.bench_migration import migration
from cluster.cli.bench_mirror import mirror
from cluster.cli.bench_papers import papers
from cluster.cli.bench_servers import replay, serve
from cluster.cli.bench_transfer import transfer

commands = typer.Typer(
    no_args_is_help=True, help="Measure servers, the engine, migration and the GPU's kernels."
)
VERBS = (
    serve, replay, mirror, engine, overhead, agreement, migration, transfer, decisions, kernels, gpu,
    papers, ablate,
)  # fmt: skip
for verb in VERBS:
    commands.command()(verb)
