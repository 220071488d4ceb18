"""A Triton kernel can stand wherever its definition does: same names, order, defaults and types."""

from __future__ import annotations

import dataclasses
import inspect

import pytest
import torch

from kernels import (
    activation,
    dispatch,
    kv_copy,
    norm,
    paged_attention,
    prefill_attention,
    reference,
    rotary,
    sampling,
)
from kernels.spans import Spans

MODULES = {
    "rms_norm": norm,
    "add_rms_norm": norm,
    "silu_mul": activation,
    "rotary_store": rotary,
    "paged_attention": paged_attention,
    "prefill_attention": prefill_attention,
    "gather_blocks": kv_copy,
    "scatter_blocks": kv_copy,
    "copy_blocks": kv_copy,
    "sample": sampling,
}


@pytest.mark.parametrize("name", MODULES)
def test_a_kernel_has_the_signature_of_its_definition(name: str) -> None:
    ours, definition = getattr(MODULES[name], name), getattr(reference, name)
    assert inspect.signature(ours) == inspect.signature(definition)


def test_every_operation_of_a_cuda_device_is_a_triton_kernel() -> None:
    chosen = dispatch.choose(torch.device("cuda", 0))
    names = {field.name for field in dataclasses.fields(chosen)} - {"linear", "attention", "float8"}
    assert names <= set(MODULES)
    for name in names:
        assert getattr(chosen, name) is getattr(MODULES[name], name)


def test_attention_on_a_cuda_device_runs_both_triton_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    called = []

    def record(name: str) -> object:
        def run(q: torch.Tensor, *arguments: object) -> torch.Tensor:
            inspect.signature(getattr(reference, name)).bind(q, *arguments)
            called.append(name)
            return q

        return run

    for name in ("paged_attention", "prefill_attention"):
        monkeypatch.setattr(MODULES[name], name, record(name))
    # The index of a CUDA device would need one; what is prepared for the layers is the same anywhere.
    attention = dispatch._triton(torch.device("cpu")).attention
    spans = Spans(counts=[3, 1], lengths=[3, 9], blocks=[[0], [1]], chunks=1, block_size=16)
    cache = torch.zeros(2, 16, 1, 64)
    assert attention(spans, 1, 0.125, None)(torch.zeros(4, 2, 64), cache, cache).shape == (4, 2, 64)
    assert called == ["prefill_attention", "paged_attention"]
