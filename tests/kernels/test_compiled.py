"""Every Triton kernel compiles for sm_80 and sm_90 within its budgets: no spilled register, shared memory.

Launches are recorded from the launchers themselves, so what is compiled is what a GPU would run.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import triton
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.runtime.jit import JITFunction

from kernels import activation, kv_copy, launch, norm, paged_attention, prefill_attention, rotary, sampling

SHARED_BYTES = {80: 163 * 1024, 90: 227 * 1024}
PROCESSORS = {80: 108, 90: 132}
POINTERS = {
    torch.float32: "*fp32",
    torch.float16: "*fp16",
    torch.bfloat16: "*bf16",
    torch.float8_e4m3fn: "*fp8e4nv",
    torch.float8_e5m2: "*fp8e5",
    torch.bool: "*i1",
    torch.int8: "*i8",
    torch.int16: "*i16",
    torch.int32: "*i32",
    torch.int64: "*i64",
}


@dataclass(frozen=True)
class Launch:
    """One recorded launch: the kernel, its arguments by name, its compile options."""

    kernel: Any
    arguments: dict[str, Any]
    options: dict[str, int]


@dataclass(frozen=True)
class Usage:
    """What a compiled kernel takes: bytes of stack and local memory mean spilled registers."""

    registers: int
    stack: int
    local: int
    shared: int


Record = Callable[[Callable[[], object], int], list[Launch]]


@pytest.fixture
def record(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> Record:
    """record(call, capability): the launches of `call`, none of which runs."""
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path_factory.getbasetemp() / "triton"))
    launches: list[Launch] = []

    def keep(kernel: Any, *args: Any, grid: Any, warmup: bool, **named: Any) -> None:
        assert all(size > 0 for size in grid)
        arguments = dict(zip(kernel.arg_names, args, strict=False))
        options = {name: value for name, value in named.items() if name not in kernel.arg_names and value}
        arguments.update({name: value for name, value in named.items() if name in kernel.arg_names})
        launches.append(Launch(kernel, arguments, options))

    def run(call: Callable[[], object], capability: int) -> list[Launch]:
        monkeypatch.setattr(launch, "_INTERPRETED", (PROCESSORS[capability], capability))
        launches.clear()
        call()
        return list(launches)

    monkeypatch.setattr(JITFunction, "run", keep)
    return run


def tool(name: str) -> Path | None:
    """cuobjdump as Triton bundles it, else the one on the path."""
    bundled = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / name
    if bundled.exists():
        return bundled
    found = shutil.which(name)
    return Path(found) if found else None


def compiled(launch: Launch, capability: int) -> Any:
    """Compile as Triton's own launch would: an int that is 1 is a constant, a multiple of 16 a hint."""
    signature, constants, hints = {}, {}, {}
    for parameter in launch.kernel.params:
        name, value = parameter.name, launch.arguments[parameter.name]
        if parameter.is_constexpr or (isinstance(value, int) and value == 1):
            signature[name], constants[name] = "constexpr", value
        elif isinstance(value, Tensor):
            signature[name] = POINTERS[value.dtype]
            hints[(parameter.num,)] = [["tt.divisibility", 16]]
        elif isinstance(value, int):
            signature[name] = "i32" if -(2**31) <= value < 2**31 else "i64"
            if value % 16 == 0:
                hints[(parameter.num,)] = [["tt.divisibility", 16]]
        else:
            signature[name] = "fp32"
    source = ASTSource(launch.kernel, signature, constants, hints)
    return triton.compile(source, target=GPUTarget("cuda", capability, 32), options=launch.options)


def usage(kernel: Any, folder: Path) -> Usage:
    cuobjdump = tool("cuobjdump")
    if cuobjdump is None:
        pytest.skip("cuobjdump is neither bundled with Triton nor on the path")
    cubin = folder / "kernel.cubin"
    cubin.write_bytes(kernel.asm["cubin"])
    text = subprocess.run([cuobjdump, "-res-usage", cubin], capture_output=True, text=True, check=True).stdout
    found = re.search(r"REG:(\d+) STACK:(\d+) SHARED:\d+ LOCAL:(\d+)", text)
    assert found is not None, text
    registers, stack, local = map(int, found.groups())
    return Usage(registers, stack, local, kernel.metadata.shared)


def zeros(*shape: int, dtype: torch.dtype = torch.bfloat16) -> Tensor:
    return torch.zeros(*shape, dtype=dtype)


def decode(
    heads: int,
    kv_heads: int,
    dim: int,
    dtype: torch.dtype = torch.bfloat16,
    storage: torch.dtype | None = None,
) -> object:
    cache = zeros(4, 16, kv_heads, dim, dtype=storage or dtype)
    table, lengths = zeros(2, 256, dtype=torch.int32), zeros(2, dtype=torch.int32)
    return paged_attention.paged_attention(
        zeros(2, heads, dim, dtype=dtype), cache, cache, table, lengths, 0.125
    )


def prefill(
    heads: int, kv_heads: int, dim: int, dtype: torch.dtype = torch.bfloat16,
    storage: torch.dtype | None = None, tokens: int = 64, masked: bool = False,
) -> object:  # fmt: skip
    """64 tokens take the tile for long chunks, 4 the one for short ones."""
    cache = zeros(4, 16, kv_heads, dim, dtype=storage or dtype)
    table, lengths = zeros(2, 256, dtype=torch.int32), zeros(2, dtype=torch.int32)
    starts = zeros(3, dtype=torch.int32)
    mask = zeros(tokens, 64, dtype=torch.bool) if masked else None
    q = zeros(tokens, heads, dim, dtype=dtype)
    return prefill_attention.prefill_attention(q, cache, cache, table, starts, lengths, 0.125, mask)


def turn(heads: int, kv_heads: int, dim: int, dtype: torch.dtype, storage: torch.dtype) -> object:
    q, k, v = zeros(5, heads + 2 * kv_heads, dim, dtype=dtype).split([heads, kv_heads, kv_heads], dim=1)
    angles, slots = zeros(5, dim // 2, dtype=torch.float32), zeros(5, dtype=torch.int64)
    cache = zeros(4, 16, kv_heads, dim, dtype=storage)
    return rotary.rotary_store(q, k, v, angles, angles, cache, cache, slots)


def residual(hidden: int, dtype: torch.dtype = torch.bfloat16) -> object:
    x = zeros(4, hidden, dtype=dtype)
    return norm.add_rms_norm(x, x, zeros(hidden, dtype=dtype), 1e-5)


def copy(dtype: torch.dtype) -> object:
    pair = zeros(2, dtype=torch.int64)
    return kv_copy.copy_blocks(zeros(2, 2, 8, 16, 8, 128, dtype=dtype), pair, pair)


def draw(vocabulary: int) -> object:
    numbers = zeros(4, dtype=torch.float32)
    top_k = zeros(4, dtype=torch.int64)
    logits = zeros(4, vocabulary, dtype=torch.float32)
    keys = zeros(4, 2, dtype=torch.int64)
    return sampling.sample(logits, numbers, top_k, numbers, numbers, keys)


E4M3, E5M2 = torch.float8_e4m3fn, torch.float8_e5m2
FLOAT32, BFLOAT16, FLOAT16 = torch.float32, torch.bfloat16, torch.float16

LAUNCHES: dict[str, Callable[[], object]] = {
    "decode-128": lambda: decode(32, 8, 128),
    "decode-64": lambda: decode(9, 3, 64),
    "decode-256": lambda: decode(8, 2, 256),
    "decode-80": lambda: decode(32, 32, 80),
    "decode-128-e5m2": lambda: decode(32, 8, 128, BFLOAT16, E5M2),
    "decode-64-float32": lambda: decode(9, 3, 64, FLOAT32),
    "prefill-128": lambda: prefill(32, 8, 128),
    "prefill-64": lambda: prefill(9, 3, 64),
    "prefill-256": lambda: prefill(8, 2, 256),
    "prefill-128-short": lambda: prefill(32, 8, 128, tokens=4),
    "prefill-128-masked": lambda: prefill(32, 8, 128, masked=True),
    "prefill-80-float32": lambda: prefill(32, 32, 80, FLOAT32),
    "rotary-128": lambda: turn(32, 8, 128, BFLOAT16, BFLOAT16),
    "rotary-80-mha": lambda: turn(32, 32, 80, BFLOAT16, BFLOAT16),
    "rotary-64-float32": lambda: turn(9, 3, 64, FLOAT32, FLOAT32),
    "residual-4096": lambda: residual(4096),
    "residual-16384": lambda: residual(16384),
    "head-norm": lambda: norm.rms_norm(zeros(64, 40, 128)[:, :32], zeros(128), 1e-6),
    "silu": lambda: activation.silu_mul(zeros(4, 28672)),
    "copy": lambda: copy(BFLOAT16),
    "sample-152k": lambda: draw(151936),
}
ONLY_SM90: dict[str, Callable[[], object]] = {
    "decode-128-e4m3": lambda: decode(32, 8, 128, BFLOAT16, E4M3),
    "prefill-128-e4m3": lambda: prefill(32, 8, 128, BFLOAT16, E4M3),
    "rotary-128-e4m3": lambda: turn(32, 8, 128, BFLOAT16, E4M3),
}
SHAPES = ((9, 3, 64), (32, 32, 80), (16, 8, 96), (32, 8, 128), (64, 8, 128), (8, 2, 256))


def full_launches() -> Iterator[Callable[[], object]]:
    for dtype in (BFLOAT16, FLOAT16, FLOAT32):
        for shape in SHAPES:
            yield lambda shape=shape, dtype=dtype: decode(*shape, dtype)
            yield lambda shape=shape, dtype=dtype: turn(*shape, dtype, dtype)
            for tokens in (4, 64):
                for masked in (False, True):
                    yield lambda shape=shape, dtype=dtype, tokens=tokens, masked=masked: prefill(
                        *shape, dtype, tokens=tokens, masked=masked
                    )
        for hidden in (576, 4096, 8192, 16384):
            yield lambda hidden=hidden, dtype=dtype: residual(hidden, dtype)


def check(record: Record, call: Callable[[], object], capability: int, folder: Path) -> None:
    launches = record(call, capability)
    assert launches
    for made in launches:
        used = usage(compiled(made, capability), folder)
        assert (used.stack, used.local) == (0, 0), f"{made.kernel.__name__} spills: {used}"
        assert used.shared <= SHARED_BYTES[capability], f"{made.kernel.__name__}: {used}"


@pytest.mark.parametrize("capability", [80, 90])
@pytest.mark.parametrize("name", LAUNCHES)
def test_a_kernel_compiles_within_its_budgets(
    name: str, capability: int, record: Record, tmp_path: Path
) -> None:
    check(record, LAUNCHES[name], capability, tmp_path)


@pytest.mark.parametrize("name", ONLY_SM90)
def test_a_kernel_with_e4m3_storage_compiles_for_sm90(name: str, record: Record, tmp_path: Path) -> None:
    check(record, ONLY_SM90[name], 90, tmp_path)


def test_every_head_size_and_type_compiles_within_its_budgets(
    full: bool, record: Record, tmp_path: Path
) -> None:
    for call in full_launches() if full else ():
        for capability in (80, 90):
            check(record, call, capability, tmp_path)


def test_a_spilling_kernel_is_noticed(record: Record, tmp_path: Path) -> None:
    made = record(LAUNCHES["prefill-128"], 90)[0]
    crowded = Launch(made.kernel, {**made.arguments, "ROWS": 128, "TILE": 64}, {"num_warps": 4})
    used = usage(compiled(crowded, 90), tmp_path)
    assert used.stack + used.local > 0


def test_a_long_sequence_is_split_and_a_full_batch_is_not() -> None:
    assert paged_attention.split_count(1, 8, 4096, 132) == 32
    assert paged_attention.split_count(1, 8, 200, 132) == 2
    assert paged_attention.split_count(1, 1, 10**6, 132) == 64
    assert paged_attention.split_count(256, 8, 4096, 132) == 1
