"""All that the outside may know of an instance."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class InstanceStatus:
    """A snapshot. Block counts obey free + used + cached + reserved == total.

    `arrivals` counts the requests that were submitted here or for which blocks were reserved here, ever.
    `head_tokens` is what the head of the queue has to compute, `prefill_tokens` what is left to compute of
    the prompts that are being read, `urgent` counts the sequences that run here with a priority above 0.
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
    head_tokens: int = 0
    urgent: int = 0
    prefill_tokens: int = 0


@dataclass(frozen=True, slots=True)
class RequestStatus:
    """A request that lives at an instance. `output_tokens` and `blocks` are those of all its choices.

    `phase` is that of the choice that is furthest; `age` is in seconds since the gateway admitted it;
    `moving` says whether a movement of it out of here is under way.
    """

    request_id: str
    phase: str
    prompt_tokens: int
    output_tokens: int
    blocks: int
    priority: int
    age: float
    moving: bool = False
    tenant: str = ""
