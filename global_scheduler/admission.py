"""Who is let in at all: what can never run is refused at the door, and queues are bounded."""

from __future__ import annotations

from engine.errors import ContextLengthExceeded, Overloaded
from global_scheduler.view import Load, Summary


def fits(load: Load, summary: Summary) -> bool:
    """Whether one choice at its longest fits the whole pool of the instance; its last token is not stored."""
    return load.blocks_for(summary.longest - 1) <= load.blocks


def check_fits(loads: list[Load], summary: Summary) -> None:
    """Raise ContextLengthExceeded when no instance could hold the request even if it were alone there."""
    if not loads or any(fits(load, summary) for load in loads):
        return
    largest = max(loads, key=lambda load: load.blocks * load.block_size)
    raise ContextLengthExceeded(
        f"prompt and max_tokens come to {summary.longest} tokens, and the KV cache of the largest instance "
        f"has room for {largest.blocks * largest.block_size + 1}: shorten the prompt, lower max_tokens, "
        "or raise engine.kv_memory",
        param="max_tokens",
    )


def check_queues(loads: list[Load], summary: Summary, queue_limit: int) -> None:
    """Raise Overloaded when a fresh request would find every queue at `queue_limit` requests.

    A recovered request goes ahead: its client already holds part of the answer.
    """
    if summary.attempt or not loads or any(load.queued < queue_limit for load in loads):
        return
    waiting = sum(load.queued for load in loads)
    raise Overloaded(
        f"{waiting} requests are waiting on {len(loads)} instances and engine.queue_limit is {queue_limit}: "
        "try again, add instances, or raise it"
    )
