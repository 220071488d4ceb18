"""All that the outside may know of an instance."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class InstanceStatus:
    """A snapshot. Block counts obey free + used + cached + reserved == total.

    `arrivals` counts the requests that were submitted here or for which blocks were reserved here, ever.
    """

    instance: str
    role: str
    steps: int = 0
    running: int = 0
    waiting: int = 0
    waiting_tokens: int = 0
    blocks_total: int = 0
    blocks_free: int = 0
    blocks_used: int = 0
    blocks_cached: int = 0
    blocks_reserved: int = 0
    block_size: int = 16
    prompt_tokens: int = 0
    output_tokens: int = 0
    prefix_queries: int = 0
    prefix_hits: int = 0
    preemptions: int = 0
    handoffs: int = 0
    handoffs_failed: int = 0
    chunks: int = 0
    step_seconds: float = 0.0
    arrivals: int = 0
