"""A request's timeline as text: where its time went, phase by phase, and what took most of it."""

from __future__ import annotations

from collections.abc import Iterator

from cluster import control_pb2 as pb
from cluster.cli.listing import milliseconds
from cluster.cli.output import out, table

WIDTH = 30
"""Characters of the bar that stands for the whole time."""

WHY = {
    "admit": "the gateway read and tokenised it",
    "place": "the controller chose where it runs, or there was no place yet",
    "queue": "it waited at the instance for its first step",
    "prefill": "its prompt was read",
    "handoff": "the rest of its KV travelled and the decode instance claimed it",
    "decode": "its tokens were written",
    "migrate": "its stream paused while it changed instances",
    "recover": "its instance had gone before that was known",
    "respond": "the rest of the answer was sent",
}


def show_timeline(one: pb.Timeline) -> None:
    """Print one request, data on stdout."""
    state = "running" if one.running else f"ended: {one.outcome}" + (f" ({one.detail})" if one.detail else "")
    lines = {
        "request": one.id,
        "state": state,
        "tenant": one.tenant or "-",
        "gateway": one.gateway,
        "trace": one.trace_id,
        "tokens": f"{one.prompt_tokens} of prompt, {one.cached_tokens} of them cached, "
        f"{one.output_tokens} written",
        "first token": milliseconds(one.ttft) if one.HasField("ttft") else "-",
        "per token": milliseconds(one.tpot) if one.HasField("tpot") else "-",
        "in all": milliseconds(one.seconds),
    }
    for key, value in lines.items():
        out().print(f"{key + ':':<14}{value}")
    rows = table("PHASE", "AT", "BEGINS", "TAKES", "SHARE", "", "WHY")
    whole = one.seconds or 1.0
    for phase in one.phases:
        share = phase.seconds / whole
        before = round(WIDTH * phase.start / whole)
        bar = " " * before + "█" * max(1, round(WIDTH * share))
        rows.add_row(
            phase.name,
            phase.instance or "-",
            milliseconds(phase.start),
            milliseconds(phase.seconds),
            f"{100 * share:.0f} %",
            bar[: WIDTH + 1],
            "; ".join(_why(phase)),
        )
    out().print()
    out().print(rows)
    if one.phases:
        longest = max(one.phases, key=lambda phase: phase.seconds)
        share = 100 * longest.seconds / whole
        out().print(f"\nMost of it, {share:.0f} %, is {longest.name}: {WHY[longest.name]}.")


def _why(phase: pb.Phase) -> Iterator[str]:
    if phase.reason:
        yield phase.reason
    if phase.chunks:
        sizes = [chunk.tokens for chunk in phase.chunks]
        plural = "s" if len(sizes) > 1 else ""
        yield f"{sum(sizes)} tokens in {len(sizes)} chunk{plural} of up to {max(sizes)}"
    elif phase.tokens:
        yield f"{phase.tokens} tokens"
