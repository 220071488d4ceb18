"""tandem chaos: load with faults against a running cluster, and a verdict."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Callable, Coroutine, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict
from functools import partial
from typing import Annotated, Any

import typer

from cluster.chaos.run import run
from cluster.chaos.scenario import load, shipped
from cluster.chaos.verdict import Verdict
from cluster.cli.connect import certificates, control, trust
from cluster.cli.failures import Exit
from cluster.cli.greeting import KEY_VARIABLE
from cluster.cli.options import ControlAddress, ControlToken, Format, Output, root
from cluster.cli.output import messages, out, print_data
from cluster.cli.progress import Advance, Steps, unseen
from cluster.cli.start import end_at_once


def command(
    context: typer.Context,
    scenario: Annotated[
        str | None,
        typer.Option("--file", "-f", metavar="FILE", help="A scenario, or the name of a shipped one."),
    ] = None,
    listing: Annotated[bool, typer.Option("--list", help="List the shipped scenarios.")] = False,
    api_key: Annotated[
        str | None,
        typer.Option("--api-key", envvar=KEY_VARIABLE, help="An API key, where the gateway asks for one."),
    ] = None,
    address: ControlAddress = None,
    token: ControlToken = None,
    output: Output = Format.TABLE,
) -> None:
    """Break a running cluster under load and say whether a request was lost, repeated or changed.

    Ends with 0 for a pass and 1 for a failure, such as a fault that could not be carried out. Ctrl-C ends it
    with 130, once the faults that were in force are taken back.
    Processes are killed on this machine only.
    """
    if listing or scenario is None:
        for name in shipped():
            out().print(f"{name:<24}{load(name).about}")
        return
    plan = load(scenario)
    steps = Steps(messages(quiet=root(context).quiet))

    def say(text: str) -> None:
        # Whether or not anybody can hear it: no fault stays in force for want of a reader.
        with suppress(OSError, SystemExit):
            steps.say(f"  {text}")

    trusting = partial(trust, shown=certificates(root(context).tls))
    with control(context, address, token) as client:
        work = run(plan, client, say, api_key=api_key, trust=trusting, phase=partial(_phase, steps))
        try:
            verdict = asyncio.run(_to_its_end(work, say))
        except asyncio.CancelledError:
            raise typer.Exit(int(Exit.INTERRUPTED)) from None
    if output.is_data:
        print_data(output, "ChaosVerdict", [asdict(verdict) | {"passed": verdict.passed}])
    else:
        _show(verdict)
    if not verdict.passed:
        raise typer.Exit(int(Exit.FAILED))


@contextmanager
def _phase(steps: Steps, title: str) -> Iterator[Advance]:
    """A step that goes on where nobody sees it any more."""
    with ExitStack() as shown:
        advance: Advance = unseen
        with suppress(OSError, SystemExit):
            advance = shown.enter_context(steps.step(title))
        yield advance
        with suppress(OSError, SystemExit):
            shown.close()


async def _to_its_end(work: Coroutine[Any, Any, Verdict], say: Callable[[str], None]) -> Verdict:
    """What `work` comes to. SIGINT and SIGTERM cancel it, once, so that it takes back what it has done; the
    next ends the process at once.

    Raises CancelledError then.
    """
    task = asyncio.ensure_future(work)

    def interrupt() -> None:
        if task.cancelling():
            say("interrupted again: what is not taken back yet stays; see `tandem status`")
            end_at_once(int(Exit.INTERRUPTED))
        say("interrupted: taking back what was done; again to end at once")
        task.cancel()

    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, interrupt)
    return await task


def _show(verdict: Verdict) -> None:
    lines = {
        "requests": f"{verdict.sent} sent, {verdict.finished} finished, {verdict.lost} lost",
        "tokens": f"{verdict.exact} exact, {verdict.changed} changed, {verdict.duplicated} duplicated",
        "faults": f"{verdict.faults} carried out, {verdict.faults_failed} failed, "
        f"{verdict.faults_missed} missed",
        "log-probs": _log_probabilities(verdict),
        "hit": f"{verdict.hit} by what ended processes; {verdict.recovered} recovered elsewhere, "
        f"{verdict.reconnected} came back to a gateway",
        "resume": _seconds(verdict.resume_p50, "p50") + ", " + _seconds(verdict.resume_max, "max"),
        "pause": f"{verdict.longest_pause:.2f} s was the longest of any stream",
        "ITL p99": f"{1000 * verdict.itl_p99:.1f} ms ({1000 * verdict.itl_p99_undisturbed:.1f} undisturbed)",
        "moves": ", ".join(f"{count} {outcome}" for outcome, count in verdict.moves.items()) or "none",
        "ledger": verdict.ledger or "balanced",
        "left": ", ".join(verdict.left) or "nothing",
    }
    for key, value in lines.items():
        out().print(f"{key + ':':<11}{value}")
    for one in verdict.resumes:
        spread = f"p50 {one.p50:.2f} s, p90 {one.p90:.2f} s, max {one.max:.2f} s"
        out().print(f"          {one.fault}: {one.streams} streams, {spread}")
    for kind in verdict.growth:
        slope = "not measured" if kind.slope is None else f"{kind.slope / 2**20:+.1f} MiB an hour"
        out().print(
            f"memory:   {kind.kind}: {slope}, {kind.memory / 2**20:.0f} MiB at most; "
            f"{kind.processes} processes, {kind.seconds:.0f} s in all, {kind.handles:+d} files, "
            f"{kind.sockets:+d} sockets",
        )
    for failure in verdict.failures:
        out().print(f"FAILED: {failure}")
    if verdict.passed:
        out().print("passed")


def _log_probabilities(verdict: Verdict) -> str:
    if verdict.bound is None:
        return "not compared: nothing is promised of them but in float32 and with engine.exact"
    return f"of {verdict.compared} tokens, {verdict.apart:.1e} apart at most ({verdict.bound:g} may be)"


def _seconds(value: float | None, name: str) -> str:
    return f"{name} -" if value is None else f"{name} {value:.2f} s"
