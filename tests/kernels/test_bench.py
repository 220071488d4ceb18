"""The benchmark of the kernels asks valid questions: every case runs with the kernels' definitions."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from kernels import reference
from kernels.bench import KernelTime, Sizes, measure, triton_kernels

SMALL = Sizes(
    copied=4096, batches=((2, 40),), prompts=(24,), rows=(5,), heads=4, kv_heads=2, dim=16, hidden=32,
    width=48, vocabulary=64, blocks=3, layers=2,
)  # fmt: skip


def once(work: Callable[[], object]) -> tuple[float, float, float]:
    work()
    return 2.0, 1.0, 3.0


@pytest.fixture(scope="module")
def found() -> dict[str, KernelTime]:
    return {one.name: one for one in measure(reference, once, SMALL, torch.device("cpu"), torch.float32)}


def test_every_kernel_is_timed() -> None:
    timed: set[str] = set()

    class Noting:
        def __getattr__(self, name: str) -> object:
            timed.add(name)
            return getattr(reference, name)

    list(measure(Noting(), once, SMALL, torch.device("cpu"), torch.float32))
    assert timed == set(vars(triton_kernels()))


def test_bytes_are_those_that_a_kernel_must_move(found: dict[str, KernelTime]) -> None:
    assert found["copy"].moved == 2 * (4096 // 2)
    kv, q = 2 * 2 * 40 * 2 * 16 * 4, 2 * 4 * 16 * 4
    assert found["decode attention"].moved == kv + 2 * q
    assert found["RMSNorm"].moved == 2 * 5 * 32 * 4
    assert found["residual + RMSNorm"].moved == 4 * 5 * 32 * 4
    assert found["SiLU · mul"].moved == 3 * 5 * 48 * 4
    assert found["gather blocks"].moved == 2 * 3 * 2 * 2 * 16 * 2 * 16 * 4


def test_a_causal_prefill_counts_half_of_the_square(found: dict[str, KernelTime]) -> None:
    # Two products of 2 operations for each head, width and visible pair.
    assert found["prefill attention"].operations == 4 * 4 * 16 * (24 * 25 // 2)
