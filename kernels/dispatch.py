"""Which implementation of the kernels a device runs: chosen once, when an instance starts."""

from __future__ import annotations

from array import array
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from kernels import cpu, cpu_attention, cpu_sampling, reference
from kernels.spans import Spans

Attention = Callable[[Tensor, Tensor, Tensor], Tensor]
"""(q [tokens, heads, dim], keys, values of one layer) -> [tokens, heads, dim]: one step's attention."""


@dataclass(frozen=True, slots=True)
class Kernels:
    """The operations of a step; `kernels.reference` defines each, shapes and all.

    `attention(spans, kv_heads, scale, mask)` prepares what the layers of one step share and returns the
    function that each of them calls: prefill_attention on the rows of chunks, paged_attention on the rest.
    `mask` is that of prefill_attention. `paged_attention` itself is for steps whose tables stay in place.
    """

    linear: Callable[[Tensor, Tensor, Tensor | None], Tensor]
    rms_norm: Callable[[Tensor, Tensor, float], Tensor]
    add_rms_norm: Callable[[Tensor, Tensor, Tensor, float], Tensor]
    silu_mul: Callable[[Tensor], Tensor]
    rotary_store: Callable[[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor], Tensor]
    attention: Callable[[Spans, int, float, Tensor | None], Attention]
    paged_attention: Callable[[Tensor, Tensor, Tensor, Tensor, Tensor, float], Tensor]
    gather_blocks: Callable[[Tensor, Tensor, Tensor], None]
    scatter_blocks: Callable[[Tensor, Tensor, Tensor], None]
    copy_blocks: Callable[[Tensor, Tensor, Tensor], None]
    sample: Callable[[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor], Tensor]
    float8: bool
    """Whether keys and values may be kept as float8."""


def choose(device: torch.device) -> Kernels:
    """The fast kernels of a device: Triton's on CUDA, the CPU path elsewhere."""
    return _triton(device) if device.type == "cuda" else _cpu()


def _cpu() -> Kernels:
    return Kernels(
        linear=cpu.linear,
        rms_norm=cpu.rms_norm,
        add_rms_norm=cpu.add_rms_norm,
        silu_mul=cpu.silu_mul,
        rotary_store=cpu.rotary_store,
        attention=cpu_attention.Attention(),
        paged_attention=reference.paged_attention,
        gather_blocks=cpu.gather_blocks,
        scatter_blocks=cpu.scatter_blocks,
        copy_blocks=cpu.copy_blocks,
        sample=cpu_sampling.sample,
        float8=False,
    )


def plain(device: torch.device) -> Kernels:
    """The definitions themselves, on any device: slow, for comparison."""
    return Kernels(
        linear=torch.nn.functional.linear,
        rms_norm=reference.rms_norm,
        add_rms_norm=reference.add_rms_norm,
        silu_mul=reference.silu_mul,
        rotary_store=reference.rotary_store,
        attention=_TensorAttention(device, reference.paged_attention, reference.prefill_attention),
        paged_attention=reference.paged_attention,
        gather_blocks=reference.gather_blocks,
        scatter_blocks=reference.scatter_blocks,
        copy_blocks=reference.copy_blocks,
        sample=reference.sample,
        float8=True,
    )


def _triton(device: torch.device) -> Kernels:
    # Triton is there only where CUDA is, and its decorators run at import.
    from kernels import activation, kv_copy, norm, paged_attention, prefill_attention, rotary, sampling

    return Kernels(
        linear=torch.nn.functional.linear,
        rms_norm=norm.rms_norm,
        add_rms_norm=norm.add_rms_norm,
        silu_mul=activation.silu_mul,
        rotary_store=rotary.rotary_store,
        attention=_TensorAttention(
            device, paged_attention.paged_attention, prefill_attention.prefill_attention
        ),
        paged_attention=paged_attention.paged_attention,
        gather_blocks=kv_copy.gather_blocks,
        scatter_blocks=kv_copy.scatter_blocks,
        copy_blocks=kv_copy.copy_blocks,
        sample=sampling.sample,
        float8=True,
    )


class _TensorAttention:
    """Attention of a step by the two kernels that take block tables as tensors."""

    def __init__(
        self, device: torch.device, decode: Callable[..., Tensor], prefill: Callable[..., Tensor]
    ) -> None:
        self._device = device
        self._decode = decode
        self._prefill = prefill

    def __call__(self, spans: Spans, kv_heads: int, scale: float, mask: Tensor | None) -> Attention:
        split, rows = spans.chunks, spans.chunk_rows
        table, lengths = self._table(spans), self._integers(list(spans.lengths))
        ends = torch.tensor([0, *spans.counts[:split]], dtype=torch.int32).cumsum(0, dtype=torch.int32)
        starts = ends.to(self._device)

        def attend(q: Tensor, keys: Tensor, values: Tensor) -> Tensor:
            parts = []
            if rows:
                parts.append(
                    self._prefill(q[:rows], keys, values, table[:split], starts, lengths[:split], scale, mask)
                )
            if rows < len(q):
                parts.append(self._decode(q[rows:], keys, values, table[split:], lengths[split:], scale))
            return parts[0] if len(parts) == 1 else torch.cat(parts)

        return attend

    def _integers(self, values: list[int]) -> Tensor:
        return torch.tensor(values, dtype=torch.int32).to(self._device, non_blocking=True)

    def _table(self, spans: Spans) -> Tensor:
        width = max(map(len, spans.blocks))
        flat = array("i")
        for blocks in spans.blocks:
            flat.extend(blocks)
            flat.frombytes(bytes(flat.itemsize * (width - len(blocks))))
        return torch.frombuffer(flat, dtype=torch.int32).view(-1, width).to(self._device)
