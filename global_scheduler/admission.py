"""Who is let in at all: what can never run is refused at the door, queues are bounded, and so is lateness.

Under overload a queue that takes everybody makes everybody late. What would come too late for its objective
is refused early, before anything is computed for it, so that those who are let in are served in time (early
rejection, after Mooncake, FAST'25).
"""

from __future__ import annotations

import math

from engine.errors import ContextLengthExceeded, Overloaded, TooLate
from engine.request import SLO
from global_scheduler.prediction import Forecast
from global_scheduler.view import Load, Summary

LOW_SHARE = 0.5
"""Of the objective that a request of a priority below 0 may be predicted to use: it gives way first."""


def fits(load: Load, summary: Summary) -> bool:
    """Whether one choice at its longest fits the whole pool of the instance; its last token is not stored."""
    return load.blocks_for(summary.longest - 1) <= load.blocks


def check_fits(loads: list[Load], summary: Summary) -> None:
    """Raise ContextLengthExceeded when no instance could hold the request even if it were alone there.

    One that has not said how many blocks it has may have enough.
    """
    known = [load for load in loads if load.blocks]
    if not known or any(fits(load, summary) for load in known):
        return
    largest = max(known, key=lambda load: load.blocks * load.block_size)
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
    if summary.attempt:
        return
    waiting = instances = 0
    for load in loads:
        if not load.cordoned:
            if load.queued < queue_limit:
                return
            waiting, instances = waiting + load.queued, instances + 1
    if not instances:
        return
    raise Overloaded(
        f"{waiting} requests are waiting on {instances} instances and engine.queue_limit is {queue_limit}: "
        "try again, add instances, or raise it"
    )


def check_deadline(forecast: Forecast | None, summary: Summary, slo: SLO) -> None:
    """Raise TooLate when the request would miss its objectives, with the seconds after which to come again.

    One of a priority above 0 is let in all the same, and a recovered one: its client already reads.
    """
    if forecast is None or summary.attempt or summary.priority > 0:
        return
    share = LOW_SHARE if summary.priority < 0 else 1.0
    if slo.ttft and forecast.ttft > share * slo.ttft:
        late = TooLate(
            f"the first token would come in {forecast.ttft:.2f} s and {share * slo.ttft:.2f} s are allowed: "
            "come again later, or add prefill instances"
        )
        late.retry_after = max(1, math.ceil(forecast.ttft - share * slo.ttft))
        raise late
    if slo.tpot and forecast.tpot > slo.tpot:
        raise TooLate(
            f"tokens would come every {forecast.tpot * 1e3:.1f} ms and {slo.tpot * 1e3:.1f} ms are allowed: "
            "come again later, or add decode instances"
        )
