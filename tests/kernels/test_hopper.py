"""Which prefill attention runs where: Hopper's own takes what its copies can carry, the other the rest."""

from __future__ import annotations

import pytest

from kernels import prefill_attention, prefill_hopper
from tests.kernels.compiling import record
from tests.kernels.launches import E4M3, FLOAT32, prefill, zeros


def module(capability: int, **named: object) -> str:
    arguments = {"heads": 32, "kv_heads": 8, "dim": 128, **named}
    (made,) = record(lambda: prefill(**arguments), capability)  # type: ignore[arg-type]
    return str(made.kernel.fn.__module__)


@pytest.mark.parametrize(
    "named",
    [{}, {"dim": 64}, {"block": 128}, {"heads": 9, "kv_heads": 3}, {"heads": 8}],
    ids=["heads of 128", "heads of 64", "blocks of 128", "groups of three", "no groups"],
)
def test_long_chunks_run_hopper_s_own_kernel(named: dict[str, object]) -> None:
    assert module(90, **named) == prefill_hopper.__name__
    assert module(80, **named) == prefill_attention.__name__


@pytest.mark.parametrize(
    "named",
    [
        {"masked": True}, {"tokens": 4}, {"dim": 80}, {"dim": 256}, {"block": 8}, {"dtype": FLOAT32},
        {"storage": E4M3},
    ],
    ids=["a mask", "few rows", "heads of 80", "heads of 256", "blocks of 8", "float32", "float8"],
)  # fmt: skip
def test_what_its_copies_cannot_carry_runs_the_general_one(named: dict[str, object]) -> None:
    assert module(90, **named) == prefill_attention.__name__


def test_keys_that_do_not_lie_block_by_block_are_not_copied_by_block() -> None:
    """Bulk copies are told one distance from slot to slot."""
    q, cache = zeros(64, 32, 128), zeros(4, 16, 8, 128)
    apart = zeros(4, 2, 16, 8, 128)[:, 0]
    assert prefill_hopper.serves(q, cache, cache)
    assert not prefill_hopper.serves(q, apart, apart)
