"""The settings of the scheduler: where requests go, who is let in, what moves, and how large pools are."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from cluster.config_section import Count, Section, contradiction
from cluster.units import Duration

Share = Annotated[float, Field(gt=0, le=1)]


class SchedulerConfig(Section):
    """Where requests go, who is let in, and what moves."""

    placement: Literal["affinity", "freeness", "expert_choice", "least_kv", "round_robin"] = Field(
        "affinity",
        description="Who is best: `freeness` the shortest prefill queue and the freest decode instance, "
        "`affinity` the same with cached prompts and adapters counted in, `expert_choice` instances take "
        "what suits them up to their share, `least_kv` and `round_robin` for comparison.",
    )
    local_prefill: Literal["tokens", "predicted"] = Field(
        "tokens",
        description="When a prompt is prefilled where it is decoded: `tokens` up to `local_prefill_tokens`, "
        "`predicted` when by `engine.step_cost` the objectives under `observe` are met better so.",
    )
    local_prefill_tokens: int = Field(
        32, ge=0, description="Prompts of which no more is to compute are prefilled where they are decoded."
    )
    admission: Literal["queue", "deadline"] = Field(
        "queue",
        description="`queue` refuses when all queues are full, `deadline` also who is predicted to miss "
        "the objectives: low priorities first, high ones never.",
    )
    handoff: Duration = Field(
        0.0, ge=0, description="What a handoff puts before the second token, for predictions."
    )
    adapter_tokens: int = Field(
        512, ge=0, description="What loading an adapter costs an instance, in prompt tokens."
    )
    headroom_blocks: int = Field(
        0, ge=0, description="KV blocks that an instance with requests of high priority keeps clear for them."
    )
    place_timeout: Duration = Field(10.0, gt=0, description="How long a new request waits for an instance.")
    recovery_timeout: Duration = Field(
        60.0, gt=0, description="How long a request whose instance was lost waits for another."
    )
    rebalance_period: Duration = Field(
        1.0, gt=0, description="How often running requests may be moved from crowded to roomy instances."
    )
    crowded_below: float = Field(
        3.0,
        ge=0,
        description="An instance with fewer free KV blocks than that for each request gives requests away.",
    )
    roomy_above: float = Field(
        6.0, ge=0, description="An instance with more free KV blocks than that for each request takes some."
    )
    rest: Duration = Field(
        2.0, ge=0, description="How long a request that was moved stays, and its instance gives none away."
    )
    decisions: Count = Field(4096, description="How many decisions `tandem explain` remembers.")
    record: str | None = Field(
        None,
        description="A file for all that the scheduler hears and decides; `tandem bench decisions --replay` "
        "reads it.",
    )

    @model_validator(mode="after")
    def _apart(self) -> SchedulerConfig:
        if self.crowded_below > self.roomy_above:
            raise contradiction(
                f"crowded_below is {self.crowded_below:g} and roomy_above {self.roomy_above:g}: what is "
                "crowded would take requests, and instances swap them for ever: lower crowded_below or raise "
                "roomy_above"
            )
        return self


class AutoscaleConfig(Section):
    """How the size of a pool follows its load. Bounds are the pool's `min_replicas` and `max_replicas`."""

    enabled: bool = Field(
        False,
        description="Whether the controller sets the target. If not, it still says what it would set. "
        "`tandem scale POOL --auto` turns it on, an explicit target off.",
    )
    out_below: float = Field(
        10.0, ge=0, description="Fewer free KV blocks than that for each request ask for instances."
    )
    in_above: float = Field(
        60.0, ge=0, description="More free KV blocks than that for each request allow one instance fewer."
    )
    attainment: Share = Field(
        0.95, description="The share of requests that must meet the objective of the pool's phase."
    )
    period: Duration = Field(5.0, gt=0, description="How often it is looked at.")
    out_patience: Duration = Field(5.0, ge=0, description="How long a wish to grow must last.")
    in_patience: Duration = Field(60.0, ge=0, description="How long a wish to shrink must last.")
    cool_down: Duration = Field(10.0, ge=0, description="How long the pool rests after a change.")
    warm_up: Duration = Field(
        10.0, ge=0, description="Instances that have been ready for less say nothing about the pool."
    )
    step: Count = Field(4, description="The most instances that one decision adds.")
    forecast: Literal["constant", "holt_winters"] = Field(
        "constant",
        description="What the load will be: `constant` as now, `holt_winters` with its trend and season.",
    )
    horizon: Duration = Field(30.0, ge=0, description="How far ahead the forecast looks.")
    season: Duration = Field(0.0, ge=0, description="The period in which the load repeats; 0 for none.")
    role_change: bool = Field(
        True,
        description="Let an instance that the other pool can spare change its role before one is started.",
    )
