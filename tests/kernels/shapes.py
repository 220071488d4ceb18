"""The shapes in which every Triton kernel is compared with its definition: name -> (case, arguments)."""

from __future__ import annotations

from typing import Any

ATTENTION = {"heads": 6, "kv_heads": 2, "dim": 64, "block": 16}
PAGED = {**ATTENTION, "dtype": "float16", "lengths": [1, 16, 37]}
CHUNKS = {**ATTENTION, "dtype": "float16", "counts": [1, 0, 17, 16], "lengths": [1, 5, 17, 50]}
ROTARY = {"dtype": "float16", "heads": 6, "kv_heads": 2, "dim": 64, "slots": [3, 19, 8, 0]}

CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "norm-one-row": ("rms_norm", {"dtype": "float32", "shape": [1, 96]}),
    "norm-rows-not-a-multiple": ("rms_norm", {"dtype": "float16", "shape": [5, 7, 80]}),
    "norm-strided-heads": ("rms_norm", {"dtype": "bfloat16", "shape": [3, 4, 64], "sliced": True}),
    "residual-odd-width": ("add_rms_norm", {"dtype": "float16", "tokens": 3, "hidden": 577}),
    "residual-wide": ("add_rms_norm", {"dtype": "float32", "tokens": 2, "hidden": 5000}),
    "silu-odd-width": ("silu_mul", {"dtype": "float16", "tokens": 3, "width": 71}),
    "silu-two-tiles": ("silu_mul", {"dtype": "float32", "tokens": 2, "width": 1031}),
    "rotary-gqa": ("rotary_store", ROTARY),
    "rotary-half-40": ("rotary_store", {**ROTARY, "dim": 80, "dtype": "float32", "slots": [7]}),
    "rotary-heads-9-3": ("rotary_store", {**ROTARY, "heads": 9, "kv_heads": 3, "dtype": "bfloat16"}),
    "rotary-padded": ("rotary_store", {**ROTARY, "slots": [3, -1, 8, -1]}),
    "rotary-fp8": ("rotary_store", {**ROTARY, "storage": "float8_e4m3fn"}),
    "rotary-fp8-e5m2-128": (
        "rotary_store",
        {**ROTARY, "dim": 128, "dtype": "bfloat16", "slots": [2, -1, 7], "storage": "float8_e5m2"},
    ),
    "decode-gqa": ("paged_attention", PAGED),
    "decode-one-kv-head-split": (
        "paged_attention",
        {**PAGED, "dtype": "float32", "heads": 3, "kv_heads": 1, "lengths": [700], "splits": 8},
    ),
    "decode-some-spans-empty": (
        "paged_attention",
        {**PAGED, "kv_heads": 1, "lengths": [1, 129, 300], "splits": 4},
    ),
    "decode-80": ("paged_attention", {**PAGED, "dim": 80, "block": 8, "heads": 3, "kv_heads": 3}),
    "decode-96": ("paged_attention", {**PAGED, "dim": 96, "block": 1, "lengths": [19, 2]}),
    "decode-128": ("paged_attention", {**PAGED, "dim": 128, "block": 32, "heads": 9, "kv_heads": 1}),
    "decode-256": ("paged_attention", {**PAGED, "dim": 256, "dtype": "float32", "lengths": [33]}),
    "decode-bf16": ("paged_attention", {**PAGED, "dtype": "bfloat16"}),
    "decode-fp8": ("paged_attention", {**PAGED, "storage": "float8_e4m3fn"}),
    "decode-length-0": ("paged_attention_of_nothing", {}),
    "prefill-gqa": ("prefill_attention", CHUNKS),
    "prefill-long-prefix": (
        "prefill_attention",
        {**CHUNKS, "dtype": "float32", "counts": [3, 20], "lengths": [150, 23]},
    ),
    "prefill-80": ("prefill_attention", {**CHUNKS, "dim": 80, "block": 8, "heads": 3, "kv_heads": 3}),
    "prefill-96": ("prefill_attention", {**CHUNKS, "dim": 96, "block": 1, "counts": [9], "lengths": [19]}),
    "prefill-128": ("prefill_attention", {**CHUNKS, "dim": 128, "heads": 9, "kv_heads": 1}),
    "prefill-256": ("prefill_attention", {**CHUNKS, "dim": 256, "counts": [40], "lengths": [71]}),
    "prefill-many-rows": ("prefill_attention", {**CHUNKS, "counts": [90], "lengths": [101]}),
    "prefill-bf16": ("prefill_attention", {**CHUNKS, "dtype": "bfloat16"}),
    "prefill-fp8": ("prefill_attention", {**CHUNKS, "storage": "float8_e5m2"}),
    "prefill-random-mask": ("prefill_attention", {**CHUNKS, "mask": "random"}),
    "prefill-tree-mask": (
        "prefill_attention",
        {**CHUNKS, "counts": [7, 12], "lengths": [40, 12], "mask": "tree"},
    ),
    "prefill-mask-first-tile-empty": (
        "prefill_attention",
        {**CHUNKS, "counts": [5], "lengths": [60], "mask": "late"},
    ),
    "decode-every-tile": ("tiles", {"kind": "paged_attention"}),
    "prefill-every-tile": ("tiles", {"kind": "prefill_attention"}),
    "copy-fp16": ("kv_copy", {"dtype": "float16", "shape": [2, 6, 3, 2, 80]}),
    "copy-fp8": ("kv_copy", {"dtype": "float8_e4m3fn", "shape": [1, 5, 16, 3, 64]}),
    "copy-fp32": ("kv_copy", {"dtype": "float32", "shape": [3, 4, 1, 1, 6]}),
    "transformer": ("transformer", {"dtype": "float32"}),
    "sample-mixed": ("sample", {"rows": 12, "vocabulary": 331}),
    "sample-one-tile": ("sample", {"rows": 3, "vocabulary": 17}),
    "sample-unfiltered": ("sample", {"rows": 40, "vocabulary": 200, "only": "none"}),
}  # fmt: skip

LONGER = {**CHUNKS, "counts": [33, 2, 70], "lengths": [33, 90, 161]}

FULL: dict[str, tuple[str, dict[str, Any]]] = {
    **{
        f"decode-{dtype}-{dim}-{block}": (
            "paged_attention",
            {**PAGED, "dtype": dtype, "dim": dim, "block": block, "lengths": [block, 2 * block + 1, 200]},
        )
        for dtype in ("float32", "float16", "bfloat16")
        for dim in (64, 80, 96, 128, 256)
        for block in (1, 8, 16, 32)
    },
    **{
        f"prefill-{dtype}-{dim}-{mask}": (
            "prefill_attention",
            {**LONGER, "dtype": dtype, "dim": dim, "mask": mask},
        )
        for dtype in ("float32", "float16", "bfloat16")
        for dim in (64, 80, 96, 128, 256)
        for mask in (None, "random", "tree")
    },
    **{f"sample-{seed}": ("sample", {"rows": 20, "vocabulary": 700, "seed": seed}) for seed in range(2, 12)},
}  # fmt: skip
