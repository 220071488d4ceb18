"""tandem k8s: manifests from the config, checked without a cluster, applied, and kept in step with it."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from enum import StrEnum
from pathlib import Path
from shutil import which
from typing import Annotated

import typer

from cluster.cli.connect import certificates
from cluster.cli.failures import Exit, Failure
from cluster.cli.options import ConfigFile, ControlAddress, Settings, chosen, overrides, root
from cluster.cli.output import messages, print_json
from cluster.cli.progress import Steps
from cluster.config import Config, read
from cluster.config_yaml import Mark, Problem
from cluster.tls import cluster_tls
from cluster.units import counted, parse_duration

commands = typer.Typer(no_args_is_help=True, help="Manifests for Kubernetes, and what keeps pools in step.")

KUBERNETES = "1.34"
APPLY_LIMIT = 300.0
NAMESPACE = "kubernetes.namespace"


class Overlay(StrEnum):
    CPU_DEV = "cpu-dev"
    GPU = "gpu"
    HA_REDIS = "ha-redis"
    MTLS = "mtls"
    INCREMENTAL_UPGRADE = "incremental-upgrade"


class LintFormat(StrEnum):
    TEXT = "text"
    JSON = "json"


OverlayName = Annotated[Overlay | None, typer.Option("--overlay", help="One of the overlays.")]


@commands.command()
def render(
    context: typer.Context,
    file: ConfigFile = None,
    settings: Settings = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="DIR", help="Write base, overlays and CRD there.")
    ] = None,
    overlay: OverlayName = None,
) -> None:
    """Make the manifests from the config: a folder for `kubectl apply -k`, or YAML on stdout."""
    from k8s import render as rendering
    from k8s.yaml_text import dump_all

    config = _config(context, file, settings)
    if output is not None:
        written = rendering.write(config, output)
        messages(quiet=root(context).quiet).print(f"{len(written)} files are in {output}")
    elif overlay is not None:
        sys.stdout.write(rendering.built(config, overlay.value))
    else:
        sys.stdout.write(dump_all(rendering.objects(config)))


@commands.command()
def lint(
    context: typer.Context,
    files: Annotated[list[Path], typer.Argument(metavar="FILE…", help="Files, or folders with them.")],
    schemas: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR", envvar="TANDEM_KUBERAY_SCHEMAS", help="The folder with the CRDs of KubeRay."
        ),
    ] = None,
    version: Annotated[
        str, typer.Option("--kubernetes", metavar="VERSION", help="The Kubernetes to check for.")
    ] = KUBERNETES,
    output: Annotated[
        LintFormat, typer.Option("--output", "-o", help="How to print.", callback=chosen)
    ] = LintFormat.TEXT,
) -> None:
    """Check manifests without a cluster; every problem is printed with its file, line and column."""
    from k8s.checks.kinds import Kinds
    from k8s.lint import lint_paths

    with Steps(messages(quiet=root(context).quiet)).step("checking manifests"):
        report = lint_paths(files, Kinds(schemas, version))
    if output is LintFormat.JSON:
        print_json("ManifestProblemList", [_plain(problem) for problem in report.problems])
    else:
        sys.stdout.write("".join(f"{problem}\n" for problem in report.problems))
    notes = messages(quiet=root(context).quiet)
    for odd in report.style:
        notes.print(f"note: {odd.at}: {odd.message}", markup=False)
    for kind in report.unchecked:
        hint = "; name KubeRay's CRDs with --schemas" if kind.startswith("ray.io/") else ""
        notes.print(f"note: no schema for {kind}, its fields are not checked{hint}", markup=False)
    count = len(report.problems)
    notes.print(f"{counted(report.objects, 'object')}, {counted(count, 'problem')}")
    if count:
        raise typer.Exit(int(Exit.FAILED))


@commands.command()
def apply(
    context: typer.Context,
    file: ConfigFile = None,
    settings: Settings = None,
    overlay: OverlayName = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Ask the API server, change nothing.")] = False,
) -> None:
    """Render the manifests and hand them to `kubectl apply --server-side`: the CRD first.

    What they say wins against what others have written since, such as bounds of a Pool. Its size, and who
    sets it, stay: manifests have neither.
    """
    from k8s import render as rendering

    config = _config(context, file, settings)
    if which("kubectl") is None:
        raise Failure(Exit.USAGE, "no_kubectl", "there is no kubectl on the PATH", "install kubectl")
    if overlay is not None:
        rendering.check_overlay(config, overlay.value)
    target = "base" if overlay is None else f"overlays/{overlay.value}"
    verb = "would be applied" if dry_run else "is applied"
    notes = messages(quiet=root(context).quiet)
    notes.print(f"{target} {verb} in the namespace {config.kubernetes.namespace}", markup=False)
    words = ["apply", "--server-side", "--force-conflicts", *(["--dry-run=server"] if dry_run else [])]
    with tempfile.TemporaryDirectory(prefix="tandem-") as folder:
        rendering.write(config, Path(folder))
        _kubectl(*words, "-f", f"{folder}/{rendering.CRD_FILE}")
        if not dry_run:
            _kubectl("wait", "--for=condition=Established", "--timeout=60s", "crd/pools.tandem.dev")
        _kubectl(*words, "-k", f"{folder}/{target}")


@commands.command()
def operator(
    context: typer.Context,
    namespace: Annotated[
        str | None,
        typer.Option(help="The namespace of the Pools. Default: that of --namespace before the verb."),
    ] = None,
    cluster: Annotated[
        str, typer.Option(help="The RayService or RayCluster that they belong to.")
    ] = "tandem",
    once: Annotated[bool, typer.Option("--once", help="Bring everything in step once, then end.")] = False,
    address: ControlAddress = None,
) -> None:
    """Keep Pools and pools in step: `kubectl scale tpool/decode --replicas=4` reaches the controller."""
    from k8s.operator import run

    flags = root(context)
    address = address or flags.address
    if address is None:
        raise Failure(Exit.USAGE, "usage", "which controller? name it with --address HOST:PORT")
    config = _config(context, None, None)
    tls = certificates(flags.tls) or cluster_tls(config.security.cluster_tls)
    run(namespace or config.kubernetes.namespace, cluster, address, flags.token, tls=tls, once=once)


@commands.command()
def leave(
    context: typer.Context,
    address: ControlAddress = None,
    gateway: Annotated[str | None, typer.Option(metavar="URL", help="This pod's own gateway.")] = None,
    deadline: Annotated[
        float, typer.Option(metavar="DURATION", parser=parse_duration, help="How long to wait at most.")
    ] = "60s",  # type: ignore[assignment]
) -> None:
    """Before a pod goes: wait until its gateway is idle, or let its instances drain. Never fails."""
    from k8s.leave import leave_gateway, leave_pool

    say, config = messages().print, _config(context, None, None)
    flags = root(context)
    token, address = flags.token or config.control.token, address or flags.address or ""
    tls = certificates(flags.tls) or cluster_tls(config.security.cluster_tls)
    if gateway is not None:
        leave_gateway(gateway, config.gateway.metrics_token, deadline, say, address, token, tls)
    else:
        leave_pool(address, token, deadline, say, tls)


def _config(context: typer.Context, file: Path | None, settings: list[str] | None) -> Config:
    """The config in force, with the namespace of the root command if that has one.

    Secrets in it are named: they don't go into manifests.
    """
    from k8s.serve_settings import secrets

    given, namespace = overrides(settings), root(context).namespace
    if namespace is not None:
        given[NAMESPACE] = namespace
    resolved = read(file, given, flags={} if namespace is None else {NAMESPACE: "--namespace"})
    if resolved.config is None:
        text = "\n".join(map(str, resolved.problems))
        raise Failure(Exit.USAGE, "config_error", text)
    notes = messages(quiet=root(context).quiet)
    for name in secrets(resolved.config) if context.command.name not in ("leave", "operator") else ():
        notes.print(f"note: {name} is not rendered: put it into the Secret tandem-secrets", markup=False)
    return resolved.config


def _kubectl(*arguments: str) -> None:
    done = subprocess.run(["kubectl", *arguments], timeout=APPLY_LIMIT, check=False)
    if done.returncode:
        raise Failure(Exit.FAILED, "kubectl_failed", f"kubectl {arguments[0]} ended with {done.returncode}")


def _plain(problem: Problem) -> dict[str, object]:
    from k8s.origin import Built

    at = problem.at
    place: dict[str, object] = {"source": str(at)}
    if isinstance(at, Mark):
        place = {"source": at.source, "line": at.line, "column": at.column}
    named = {"object": problem.name} if isinstance(problem, Built) else {}
    return {"at": place, **named, "path": ".".join(problem.path), "message": problem.message}
