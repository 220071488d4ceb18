"""tandem bench kernels and gpu: what the GPU does, kernel by kernel and step by step."""

from __future__ import annotations

import typer

from cluster.cli.bench_options import Html
from cluster.cli.bench_output import Watch, present
from cluster.cli.options import Format, Output, root
from cluster.cli.output import messages


def kernels(context: typer.Context, html: Html = None, output: Output = Format.TABLE) -> None:
    """Time every Triton kernel beside the GPU's own bandwidth and torch's attention; about a minute."""
    # It brings torch, which takes seconds to import.
    from cluster.bench.gpu import measure_kernels, sections

    with Watch(messages(quiet=root(context).quiet)) as watch:
        watch.begin("kernels")
        report = measure_kernels(watch.say)
    present(report, sections(report), "tandem bench kernels", html, output)


def gpu(context: typer.Context, html: Html = None, output: Output = Format.TABLE) -> None:
    """Time whole steps of a random model in the shape of Llama-3.1-8B on a GPU; about a minute."""
    from cluster.bench.gpu import measure_steps, sections

    with Watch(messages(quiet=root(context).quiet)) as watch:
        watch.begin("steps")
        report = measure_steps(watch.say)
    present(report, sections(report), "tandem bench gpu", html, output)
