"""How free an instance is: blocks left per request, about the decode steps it can take before it must
preempt.

Freeness is Llumnix's F = (M − ΣV) / B (OSDI'24, §4.4) in its dispatch form: V counts all queued demand, not
only the head of the line, and B counts running and waiting requests. Blocks of the prefix cache count as
free, since they are evicted on demand.
"""

from __future__ import annotations

from global_scheduler.view import Load


def freeness(load: Load, *, hold: int = 0, headroom: int = 0) -> float:
    """Blocks per request once one of `hold` tokens has joined; negative when demand exceeds the pool.

    `headroom` blocks are kept clear by an instance with urgent requests, for them all together.
    """
    free = load.blocks - load.demand - (headroom if load.urgent else 0)
    if not hold:
        return free / max(1, load.requests)
    return (free - -(-hold // load.block_size)) / (load.requests + 1)


def room(load: Load, *, headroom: int = 0) -> float:
    """Freeness as migration sees it: blocks per running request, of what is not spoken for.

    V counts what runs, the demand of the head of the queue alone (the rest would make every instance with
    a queue flee), and `headroom` blocks that an instance with urgent requests keeps clear for them all.
    """
    kept = headroom if load.urgent else 0
    return (load.blocks - load.held - load.head - kept) / max(1, load.running + (load.head > 0))


def backlog(load: Load, *, prefill: int = 0) -> int:
    """Prompt tokens to compute until a request that joins now with `prefill` tokens has its first token."""
    return load.queued_tokens + prefill
