"""Each Triton kernel against its definition: run on a GPU in this process, or as a script in the interpreter.

A case is a function of plain arguments that raises AssertionError where kernel and definition differ.
As a script the file reads one JSON object a line, {"case", "arguments", "mutant"}, and answers each
with {"error": null or a traceback}. A mutant [module, old, new] replaces one piece of a kernel's source.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import sys
import tempfile
import traceback
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from kernels import dispatch, reference
from kernels.spans import Spans
from model.config import ModelConfig
from model.kv_cache import KVCache, KVLayout
from model.packing import recipe
from model.transformer import Transformer

DTYPES = {
    "float32": torch.float32,
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
    "float8_e4m3fn": torch.float8_e4m3fn,
    "float8_e5m2": torch.float8_e5m2,
}
# Both sides compute in float32 and round once; attention rounds its weights to the values' type too.
TOLERANCES = {"float32": 1e-5, "float16": 4e-3, "bfloat16": 3e-2}
MUTANTS: dict[str, ModuleType] = {}


def kernel(module: str) -> ModuleType:
    return MUTANTS.get(module) or importlib.import_module(f"kernels.{module}")


class Inputs:
    """Seeded tensors on one device."""

    def __init__(self, device: str, dtype: str, seed: int = 0) -> None:
        self.device = device
        self.dtype = DTYPES[dtype]
        self.tolerance = TOLERANCES[dtype]
        self.generator = torch.Generator().manual_seed(seed)

    def normal(self, *shape: int, dtype: torch.dtype | None = None) -> Tensor:
        return torch.randn(*shape, generator=self.generator).to(self.device, dtype or self.dtype)

    def ints(self, values: list[int] | list[list[int]], dtype: torch.dtype = torch.int32) -> Tensor:
        return torch.tensor(values, dtype=dtype, device=self.device)

    def same(self, ours: Tensor, theirs: Tensor) -> None:
        assert ours.dtype == theirs.dtype
        torch.testing.assert_close(
            ours.float(), theirs.float(), atol=self.tolerance, rtol=self.tolerance, check_stride=False
        )

    def cache(self, lengths: list[int], block: int, kv_heads: int, dim: int, storage: str | None) -> Any:
        """Keys and values of a pool's second layer, NaN where no sequence has a position, and the table.

        Blocks are dealt out in random order; entries of the table beyond a sequence's blocks name block 0.
        """
        needed = [-(-length // block) for length in lengths]
        total = sum(needed) + 2
        order = (torch.randperm(total - 1, generator=self.generator) + 1).tolist()
        kind = DTYPES[storage] if storage else self.dtype
        pool = torch.full((2, 2, total, block, kv_heads, dim), float("nan")).to(self.device, kind)
        tables = [[order.pop() for _ in range(count)] for count in needed]
        for table, length in zip(tables, lengths, strict=True):
            for place, name in enumerate(table):
                filled = min(block, length - place * block)
                pool[1, :, name, :filled] = self.normal(2, filled, kv_heads, dim, dtype=kind)
        width = max(needed) + 1
        return pool[1, 0], pool[1, 1], self.ints([t + [0] * (width - len(t)) for t in tables])


def rms_norm(device: str, dtype: str, shape: list[int], sliced: bool = False) -> None:
    inputs = Inputs(device, dtype)
    x, weight = inputs.normal(*shape), inputs.normal(shape[-1])
    x = x[:, 1:] if sliced else x
    inputs.same(kernel("norm").rms_norm(x, weight, 1e-5), reference.rms_norm(x, weight, 1e-5))


def add_rms_norm(device: str, dtype: str, tokens: int, hidden: int) -> None:
    inputs = Inputs(device, dtype)
    x, residual, weight = inputs.normal(tokens, hidden), inputs.normal(tokens, hidden), inputs.normal(hidden)
    theirs = residual.clone()
    expected = reference.add_rms_norm(x, theirs, weight, 1e-5)
    inputs.same(kernel("norm").add_rms_norm(x, residual, weight, 1e-5), expected)
    inputs.same(residual, theirs)


def silu_mul(device: str, dtype: str, tokens: int, width: int) -> None:
    inputs = Inputs(device, dtype)
    gate_up = inputs.normal(tokens, 2 * width)
    inputs.same(kernel("activation").silu_mul(gate_up), reference.silu_mul(gate_up))


def rotary_store(
    device: str, dtype: str, heads: int, kv_heads: int, dim: int, slots: list[int], storage: str | None = None
) -> None:
    """q, k and v are slices of one fused projection; what is written nowhere (−1 too) stays as it was.

    A float8 cache is tested with activations that it holds exactly, turned by zero or half a turn: the
    interpreter rounds to float8 without the carry.
    """
    inputs = Inputs(device, dtype)
    kind = DTYPES[storage] if storage else inputs.dtype
    fused = inputs.normal(len(slots), heads + 2 * kv_heads, dim)
    angles = inputs.normal(len(slots), dim // 2, dtype=torch.float32)
    cos, sin = angles.cos(), angles.sin()
    if storage is not None:
        fused, cos, sin = fused.to(kind).to(inputs.dtype), angles.sign(), torch.zeros_like(angles)
    q, k, v = fused.split([heads, kv_heads, kv_heads], dim=1)
    ours = inputs.normal(2, 5, 4, kv_heads, dim).to(kind)
    theirs = ours.clone()
    places = inputs.ints(slots, torch.int64)
    got = kernel("rotary").rotary_store(q, k, v, cos, sin, ours[0], ours[1], places)
    expected = reference.rotary_store(q, k, v, cos, sin, theirs[0], theirs[1], places)
    inputs.same(ours, theirs)
    inputs.same(got, expected)


def paged_attention(
    device: str, dtype: str, heads: int, kv_heads: int, dim: int, block: int, lengths: list[int],
    storage: str | None = None, splits: int | None = None,
) -> None:  # fmt: skip
    inputs = Inputs(device, dtype)
    keys, values, table = inputs.cache(lengths, block, kv_heads, dim, storage)
    module = kernel("paged_attention")
    if splits is not None:
        chosen = module.split_count(
            len(lengths), kv_heads, table.shape[1] * block, module.properties(keys.device)[0]
        )
        assert chosen == splits, f"the case means to cover {splits} splits, not {chosen}"
    q = inputs.normal(len(lengths), heads, dim)
    counts = inputs.ints(lengths)
    scale = dim**-0.5
    got = module.paged_attention(q, keys, values, table, counts, scale)
    inputs.same(got, reference.paged_attention(q, keys, values, table, counts, scale))


def paged_attention_of_nothing(device: str) -> None:
    """A row of length 0, which pads a captured batch, is zero and disturbs no other row."""
    inputs = Inputs(device, "float32")
    for lengths in ([300, 0], [5, 0]):
        keys, values, table = inputs.cache(lengths, 16, 1, 64, None)
        q = inputs.normal(2, 2, 64)
        attend = kernel("paged_attention").paged_attention
        got = attend(q, keys, values, table, inputs.ints(lengths), 0.125)
        alone = reference.paged_attention(q[:1], keys, values, table, inputs.ints(lengths[:1]), 0.125)
        inputs.same(got, torch.cat((alone, torch.zeros_like(alone))))


def prefill_attention(
    device: str, dtype: str, heads: int, kv_heads: int, dim: int, block: int, counts: list[int],
    lengths: list[int], storage: str | None = None, mask: str | None = None,
) -> None:  # fmt: skip
    """mask: None for causal, "random", "tree" for ancestors, "late" where no row sees a position but 40."""
    inputs = Inputs(device, dtype)
    keys, values, table = inputs.cache(lengths, block, kv_heads, dim, storage)
    rows = sum(counts)
    q = inputs.normal(rows, heads, dim)
    starts = inputs.ints([sum(counts[:i]) for i in range(len(counts) + 1)])
    seen = None if mask is None else _mask(inputs, mask, counts, lengths)
    arguments = (q, keys, values, table, starts, inputs.ints(lengths), dim**-0.5, seen)
    got = kernel("prefill_attention").prefill_attention(*arguments)
    inputs.same(got, reference.prefill_attention(*arguments))


def _mask(inputs: Inputs, kind: str, counts: list[int], lengths: list[int]) -> Tensor:
    rows, width = sum(counts), max(lengths) + 3
    if kind == "random":
        seen = torch.rand(rows, width, generator=inputs.generator) < 0.3
        seen[:, 0] = True
    elif kind == "late":
        seen = torch.zeros(rows, width, dtype=torch.bool)
        seen[:, 40] = True
    else:
        seen = torch.zeros(rows, width, dtype=torch.bool)
        row = 0
        for count, length in zip(counts, lengths, strict=True):
            for node in range(count):
                seen[row, : length - count] = True
                if node:
                    # A binary tree in breadth-first order: a node sees itself and what its parent sees.
                    seen[row] = seen[row - node + (node - 1) // 2]
                seen[row, length - count + node] = True
                row += 1
    return seen.to(inputs.device)


def tiles(device: str, kind: str) -> None:
    """Every tile that `kernels.tuning` compares computes the same."""
    inputs = Inputs(device, "float16")
    decoding = kind == "paged_attention"
    lengths, counts = [150, 3], [1, 1] if decoding else [70, 2]
    keys, values, table = inputs.cache(lengths, 16, 2, 64, None)
    q, scale = inputs.normal(sum(counts), 6, 64), 0.125
    starts = [] if decoding else [inputs.ints([0, counts[0], sum(counts)])]
    arguments = (q, keys, values, table, *starts, inputs.ints(lengths), scale)
    expected = getattr(reference, kind)(*arguments)
    for tile in kernel(kind).TILES:
        got = kernel(kind).attend(*arguments, *([] if decoding else [None]), tile)
        inputs.same(got, expected)


def kv_copy(device: str, dtype: str, shape: list[int]) -> None:
    """Gather, scatter, and a copy in which one pair's target is another's source."""
    inputs = Inputs(device, "float32")
    layers, blocks, size, kv_heads, dim = shape
    pool = inputs.normal(layers, 2, blocks, size, kv_heads, dim, dtype=DTYPES[dtype])
    module = kernel("kv_copy")
    chosen = inputs.ints([blocks - 1, 0, 2], torch.int64)

    def fresh() -> Tensor:
        return torch.zeros(3, layers, 2, size, kv_heads, dim).to(pool)

    ours, theirs = fresh(), fresh()
    module.gather_blocks(pool, chosen, ours)
    theirs.view(torch.int8).copy_(pool.view(torch.int8)[:, :, chosen].permute(2, 0, 1, 3, 4, 5))
    assert torch.equal(ours.view(torch.int8), theirs.view(torch.int8))

    emptied = torch.zeros_like(pool)
    module.scatter_blocks(emptied, chosen, ours)
    expected = torch.zeros_like(pool).view(torch.int8)
    reference.scatter_blocks(expected, chosen, theirs.view(torch.int8))
    assert torch.equal(emptied.view(torch.int8), expected)

    copied = pool.clone().view(torch.int8)
    sources, targets = inputs.ints([1, 0, 2], torch.int64), inputs.ints([0, 2, 3], torch.int64)
    reference.copy_blocks(copied, sources, targets)
    module.copy_blocks(pool, sources, targets)
    assert torch.equal(pool.view(torch.int8), copied)


def sample(device: str, rows: int, vocabulary: int, seed: int = 0, only: str | None = None) -> None:
    """Tokens equal those of the definition, or of one whose top-p is moved by 1e-5.

    `only` leaves one filter on, at a value that bites a flat distribution; otherwise all mix, and off too.
    """
    inputs = Inputs(device, "float32", seed)
    pick = torch.Generator().manual_seed(seed + 1)

    def choose(name: str, values: list[float], off: float) -> Tensor:
        if only is not None:
            values = values[1:2] if only == name else [off]
        return torch.tensor(values)[torch.randint(len(values), (rows,), generator=pick)].to(device)

    logits = inputs.normal(rows, vocabulary) * (3.0 if only is None else 0.5)
    logits[:, ::7] = float("-inf")
    logits[:, 5] = logits[:, 1]
    temperature = choose("temperature", [1.0, 0.6, 0.0, 1.7], 1.0)
    top_k = choose("top_k", [0, 2, 1, 9, vocabulary, vocabulary + 9], 0).long()
    top_p = choose("top_p", [1.0, 0.6, 0.0, 0.95, 1e-6], 1.0)
    min_p = choose("min_p", [0.0, 0.2, 0.01], 0.0)
    keys = torch.tensor([reference.draw_key(seed, row, 7) for row in range(rows)]).to(device)
    got = kernel("sampling").sample(logits, temperature, top_k, top_p, min_p, keys)
    expected = reference.sample(logits, temperature, top_k, top_p, min_p, keys)
    assert got.dtype == expected.dtype
    close = got == expected
    for move in (-1e-5, 1e-5):
        shifted = torch.where((top_p > 0) & (top_p < 1), (top_p + move).clamp(0, 1), top_p)
        close |= got == reference.sample(logits, temperature, top_k, shifted, min_p, keys)
    assert close.all(), f"rows {(~close).nonzero().flatten().tolist()} drew {got} instead of {expected}"
    assert (got == expected).float().mean() >= 0.95


def transformer(device: str, dtype: str) -> None:
    """Two steps of a small Qwen3, a chunk beside a decode in the second, as the runner would launch them."""
    inputs = Inputs(device, dtype)
    config = ModelConfig(
        architecture="qwen3", vocab_size=61, hidden_size=72, layers=2, heads=6, kv_heads=2, head_dim=16,
        intermediate_size=88, norm_eps=1e-6, context_length=64, tied=True, qk_norm=True,
    )  # fmt: skip
    weights = {packed.name: inputs.normal(*packed.shape) * 0.2 for packed in recipe(config)}
    first = Spans(counts=[9], lengths=[9], blocks=[[4, 2]], chunks=1, block_size=8)
    second = Spans(counts=[5, 1], lengths=[5, 10], blocks=[[1], [4, 2]], chunks=1, block_size=8)
    steps = [(first, [*range(9)]), (second, [*range(5), 9])]
    results = []
    for kernels in (dispatch._triton(torch.device(device)), dispatch.plain(torch.device(device))):
        model = Transformer(config, weights, kernels)
        cache = KVCache(KVLayout(2, 8, 2, 16, dtype), 6, torch.device(device), kernels)
        cache.pool.zero_()
        rows = []
        for spans, positions in steps:
            tables = [table for table, n in zip(spans.blocks, spans.counts, strict=True) for _ in range(n)]
            slots = [table[p // 8] * 8 + p % 8 for table, p in zip(tables, positions, strict=True)]
            attention = kernels.attention(spans, config.kv_heads, 0.25, None)
            place = inputs.ints(positions, torch.int64)
            rows.append(model.forward(place * 3, place, inputs.ints(slots, torch.int64), attention, cache))
        results.append((model.logits(torch.cat(rows)), cache.pool))
    inputs.tolerance *= 10
    for ours, theirs in zip(*results, strict=True):
        inputs.same(ours, theirs)


def mutate(module: str, old: str, new: str, folder: Path) -> None:
    """Use `module` with one piece of its source replaced."""
    source = Path(str(importlib.import_module(f"kernels.{module}").__file__)).read_text()
    assert source.count(old) == 1, f"{old!r} stands {source.count(old)} times in kernels/{module}.py"
    path = folder / f"{module}.py"
    path.write_text(source.replace(old, new))
    spec = importlib.util.spec_from_file_location(f"mutant_{module}", path)
    assert spec is not None
    assert spec.loader is not None
    MUTANTS[module] = importlib.util.module_from_spec(spec)
    sys.modules[f"mutant_{module}"] = MUTANTS[module]
    spec.loader.exec_module(MUTANTS[module])


def serve() -> None:
    """Answer the cases of standard input until it ends."""
    for line in sys.stdin:
        order = json.loads(line)
        MUTANTS.clear()
        error = None
        with tempfile.TemporaryDirectory() as folder:
            try:
                if order["mutant"]:
                    mutate(*order["mutant"], Path(folder))
                globals()[order["case"]](**order["arguments"])
            except Exception:
                error = traceback.format_exc()
        sys.stdout.write(json.dumps({"error": error}) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    serve()
