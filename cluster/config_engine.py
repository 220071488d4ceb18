"""The settings of the engine inside each instance, its policies among them."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from cluster.config_section import Count, Section
from cluster.units import Duration, Quantity

Milliseconds = Annotated[float, Field(ge=0)]


class StepCostConfig(Section):
    """How long a step takes: base + max(floor, per_token x tokens) + per_context x tokens attended to.

    All in milliseconds. `stall_free`, `slices` and `mlfq` decide by it.
    """

    base: Milliseconds = Field(0.0, description="Milliseconds that every step costs.")
    floor: Milliseconds = Field(0.0, description="Milliseconds to read the weights once.")
    per_token: Milliseconds = Field(0.0, description="Milliseconds to compute a token. 0: not measured yet.")
    per_context: Milliseconds = Field(0.0, description="Milliseconds to read the KV of a token.")
    tile: Count = Field(1, description="Tokens are rounded up to a multiple of this.")
    per_swap: Milliseconds = Field(
        0.0,
        description="Milliseconds to bring the KV of a token to or from `host_memory`; swaps by choice are "
        "kept below a twentieth of the time.",
    )


class EngineConfig(Section):
    """The engine inside each instance."""

    block_size: Literal[8, 16, 32, 64] = Field(16, description="Tokens in one block of the KV cache.")
    kv_memory: Quantity = Field(2**28, ge=2**20, description="Memory for the KV cache of each instance.")
    kv_dtype: Literal["auto", "float8_e4m3fn", "float8_e5m2"] = Field(
        "auto",
        description="How keys and values are kept: `auto` as `model.dtype`; the float8 kinds, on GPUs only, "
        "hold twice the tokens of bfloat16 at some loss. e4m3 needs compute capability 8.9.",
    )
    token_budget: Count = Field(
        256,
        description="The most tokens of one step; prompts are cut into chunks to fit it. Decodes come first, "
        "and where they fill it a prompt gets one token: let it be well above `max_sequences`.",
    )
    max_sequences: Count = Field(64, description="The most sequences that run at once in one instance.")
    queue_limit: Count = Field(
        256, description="The most sequences that wait in one instance; more are answered 503."
    )
    prefix_cache: bool = Field(True, description="Keep the KV of prompts for requests that begin alike.")
    exact: bool = Field(
        False,
        description="Refuse to start unless a token's logits are the same bits in any batch, chunk, prefix "
        "hit and place: so with the compiled CPU kernels, at no cost.",
    )
    threads: Count | None = Field(None, description="CPU threads of an instance. Null shares out the cores.")
    device: Literal["auto", "cpu", "cuda"] = Field(
        "auto", description="`auto` takes a GPU where there is one."
    )
    queue: Literal["fcfs", "fair", "mlfq"] = Field(
        "fcfs",
        description="Who is served first: `fcfs` by arrival, `fair` the tenant that had least, `mlfq` the "
        "shortest so far.",
    )
    batch: Literal["auto", "stall_free", "decode_maximal", "slices"] = Field(
        "auto",
        description="What shares a step: `auto` decodes and chunks up to `token_budget`, `stall_free` all "
        "prompt tokens that `tbt` allows, `decode_maximal` one chunk and all decodes, `slices` batches of "
        "like lengths for `slice_steps` steps at a time.",
    )
    slice_steps: Count = Field(
        32, description="Steps that a batch of `slices` stays together; KV is kept between slices."
    )
    admission: Literal["paged", "reserve_max"] = Field(
        "paged",
        description="`paged` admits by what a request holds, `reserve_max` by the longest it may become, so "
        "that nothing is ever preempted.",
    )
    tbt: Duration = Field(
        0.1, gt=0, description="Time between two tokens that `stall_free` keeps, by `step_cost`."
    )
    host_memory: Quantity = Field(
        0,
        description="Memory of each instance for the KV of requests that were preempted, which are computed "
        "again where it does not suffice. 0: none.",
    )
    swap: Literal["ahead", "on_demand"] = Field(
        "ahead",
        description="`ahead` swaps under `mlfq` before there is need, those first who are needed last.",
    )
    tenant_cost: Literal["linear", "profiled"] = Field(
        "linear",
        description="What `fair` charges: `linear` 1 for a prompt and 2 for an output token, `profiled` what "
        "VTC's authors measured, long contexts dearer.",
    )
    tenant_prediction: Literal["none", "moving_average"] = Field(
        "none",
        description="`moving_average` charges a tenant at admission for an answer as long as its last five "
        "were, and settles at the end.",
    )
    tenant_weights: dict[str, Annotated[float, Field(gt=0)]] = Field(
        {}, description="Shares of tenants under `fair`; who is not named has 1."
    )
    step_cost: StepCostConfig = StepCostConfig()
