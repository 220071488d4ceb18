"""Every Triton kernel agrees with its definition in the interpreter, on odd shapes; mutants do not."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from tests.kernels.shapes import CASES, CHUNKS, FULL, PAGED, ROTARY

Interpret = Callable[..., str | None]


@pytest.mark.parametrize("name", CASES)
def test_a_kernel_agrees_with_its_definition(name: str, interpret: Interpret) -> None:
    case, arguments = CASES[name]
    error = interpret(case, **arguments)
    assert error is None, error


def test_every_combination_agrees_with_its_definition(full: bool, interpret: Interpret) -> None:
    for name, (case, arguments) in FULL.items() if full else list(FULL.items())[::45]:
        error = interpret(case, **arguments)
        assert error is None, f"{name}: {error}"


MUTANTS: dict[str, tuple[str, str, str, str, dict[str, Any]]] = {
    "reads-one-token-too-many": (
        "paged_attention", "inside = tokens < last", "inside = tokens <= last", "paged_attention", PAGED,
    ),
    "reads-another-kv-head": (
        "paged_attention", "keys = key_ptr + kv_head * key_head", "keys = key_ptr",
        "paged_attention", PAGED,
    ),
    "reads-another-block-table": (
        "paged_attention", "tables_ptr + sequence * table_row", "tables_ptr", "paged_attention", PAGED,
    ),
    "spans-weigh-the-same": (
        "paged_attention", 'weights = tl.exp2(logs - tl.where(highest == float("-inf"), 0.0, highest))',
        'weights = tl.where(logs > float("-inf"), 1.0, 0.0)', *CASES["decode-some-spans-empty"],
    ),
    "sees-one-position-less": (
        "prefill_attention", "tokens[None, :] <= positions[:, None]", "tokens[None, :] < positions[:, None]",
        "prefill_attention", CHUNKS,
    ),
    "forgets-the-prefix": (
        "prefill_attention", "prefix = length - count", "prefix = length - length",
        "prefill_attention", CHUNKS,
    ),
    "compares-a-tile-too-late": (
        "prefill_attention", "// TILE * TILE\n", "// TILE * TILE + TILE\n", "prefill_attention", CHUNKS,
    ),
    "ignores-the-mask": (
        "prefill_attention", "return seen != 0", "return inside", *CASES["prefill-random-mask"],
    ),
    "averages-over-the-padding": (
        "norm", "tl.sum(x * x, 1) / DIM", "tl.sum(x * x, 1) / WIDTH", *CASES["residual-odd-width"],
    ),
    "turns-the-other-way": (
        "rotary", "high * cos + low * sin", "high * cos - low * sin", "rotary_store", ROTARY,
    ),
    "writes-what-pads-the-batch": (
        "rotary", "slot = tl.load(slots_ptr + token)", "slot = tl.maximum(tl.load(slots_ptr + token), 0)",
        *CASES["rotary-padded"],
    ),
    "gates-the-wrong-half": (
        "activation", "tl.sigmoid(gate)", "tl.sigmoid(up)", *CASES["silu-odd-width"],
    ),
    "copies-keys-for-values": (
        "kv_copy", "plane * pool_plane + block", "plane // 2 * 2 * pool_plane + block", *CASES["copy-fp16"],
    ),
    "another-mix": ("sampling", "x >> 15", "x >> 14", *CASES["sample-unfiltered"]),
    "words-of-the-key-swapped": (
        "sampling", "^ first) ^ second", "^ second) ^ first", *CASES["sample-unfiltered"],
    ),
    "one-token-more-than-top-k": (
        "sampling", "top_k.to(tl.float32)", "top_k.to(tl.float32) + 1.0",
        "sample", {"rows": 12, "vocabulary": 150, "only": "top_k"},
    ),
    "top-p-of-an-unscaled-sum": (
        "sampling", "top_p * left", "top_p", "sample", {"rows": 12, "vocabulary": 150, "only": "top_p"},
    ),
    "no-min-p": (
        "sampling", "tl.load(min_p_ptr + row)", "0.0",
        "sample", {"rows": 12, "vocabulary": 150, "only": "min_p"},
    ),
    "no-temperature": (
        "sampling", "tl.div_rn(logits - best, temperature)", "logits - best",
        "sample", {"rows": 40, "vocabulary": 150, "only": "temperature"},
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", MUTANTS)
def test_a_wrong_kernel_is_noticed(name: str, interpret: Interpret) -> None:
    module, old, new, case, arguments = MUTANTS[name]
    error = interpret(case, mutant=(module, old, new), **arguments)
    assert error is not None
    assert "AssertionError" in error
    assert "times in kernels/" not in error
