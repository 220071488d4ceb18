"""What a launch of a Triton kernel compiles to, without a GPU. As a script: the table of docs/performance.md.

Launches are recorded from the launchers themselves, so what is compiled is what a GPU would run.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import triton
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.experimental.gluon._runtime import GluonASTSource
from triton.experimental.gluon.nvidia.hopper import TensorDescriptor
from triton.runtime.jit import JITFunction, mangle_type

from kernels import launch

SHARED_BYTES = {80: 163 * 1024, 90: 227 * 1024}
PROCESSORS = {80: 108, 90: 132}
REGISTERS = 65536
"""Of one multiprocessor."""
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


def record(call: Callable[[], object], capability: int) -> list[Launch]:
    """The launches of `call` on a device of that capability, none of which runs."""
    launches: list[Launch] = []

    def keep(kernel: Any, *args: Any, grid: Any, warmup: bool, **named: Any) -> None:
        assert all(size > 0 for size in grid)
        arguments = dict(zip(kernel.arg_names, args, strict=False))
        options = {name: value for name, value in named.items() if name not in kernel.arg_names and value}
        arguments.update({name: value for name, value in named.items() if name in kernel.arg_names})
        launches.append(Launch(kernel, arguments, options))

    before, stand_in = JITFunction.run, launch._INTERPRETED
    JITFunction.run = keep  # type: ignore[method-assign]
    launch._INTERPRETED = (PROCESSORS[capability], capability)
    try:
        call()
    finally:
        JITFunction.run = before  # type: ignore[method-assign]
        launch._INTERPRETED = stand_in
    return launches


def compiled(made: Launch, capability: int) -> Any:
    """Compile as Triton's own launch would: an int that is 1 is a constant, a multiple of 16 a hint."""
    signature, constants, hints = {}, {}, {}
    for parameter in made.kernel.params:
        name, value = parameter.name, made.arguments[parameter.name]
        if parameter.is_constexpr or (isinstance(value, int) and value == 1):
            signature[name], constants[name] = "constexpr", value
        elif isinstance(value, Tensor):
            signature[name] = POINTERS[value.dtype]
            hints[(parameter.num,)] = [["tt.divisibility", 16]]
        elif isinstance(value, TensorDescriptor):
            signature[name] = mangle_type(value)
        elif isinstance(value, int):
            signature[name] = "i32" if -(2**31) <= value < 2**31 else "i64"
            if value % 16 == 0:
                hints[(parameter.num,)] = [["tt.divisibility", 16]]
        else:
            signature[name] = "fp32"
    kind = GluonASTSource if made.kernel.is_gluon() else ASTSource
    source = kind(made.kernel, signature, constants, hints)
    return triton.compile(source, target=GPUTarget("cuda", capability, 32), options=made.options)


def tool(name: str) -> Path | None:
    """cuobjdump as Triton bundles it, else the one on the path."""
    bundled = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / name
    if bundled.exists():
        return bundled
    found = shutil.which(name)
    return Path(found) if found else None


def usage(kernel: Any, cuobjdump: Path) -> Usage:
    with tempfile.NamedTemporaryFile(suffix=".cubin") as cubin:
        cubin.write(kernel.asm["cubin"])
        cubin.flush()
        text = subprocess.run(
            [cuobjdump, "-res-usage", cubin.name], capture_output=True, text=True, check=True
        ).stdout
    found = re.search(r"REG:(\d+) STACK:(\d+) SHARED:\d+ LOCAL:(\d+)", text)
    assert found is not None, text
    registers, stack, local = map(int, found.groups())
    return Usage(registers, stack, local, kernel.metadata.shared)


def resident(used: Usage, warps: int, capability: int) -> int:
    """How many programs fit on a multiprocessor by registers (given out by 8 a thread), memory and warps."""
    by_registers = REGISTERS // (-(-used.registers // 8) * 8 * 32 * warps)
    return min(by_registers, (SHARED_BYTES[capability] + 1024) // (used.shared + 1024), 64 // warps, 32)


def facts(kernel: Any) -> str:
    """How the code moves and multiplies: asynchronous copies and loads by their bytes, kinds of products."""
    ptx = kernel.asm["ptx"]
    copies = sorted(set(re.findall(r"cp\.async\.c[ag]\.shared\.global \[.*?\], \[.*?\], 0x([0-9a-f]+)", ptx)))
    loads = sorted(set(re.findall(r"ld\.global(?:\.\w+::?\w*)*((?:\.v\d)?\.[bu]\d+)", ptx)))
    products = sorted(
        set(
            re.findall(
                r"(wgmma\.mma_async\.sync\.aligned\.m\d+n\d+k\d+|mma\.sync\.aligned\.m\d+n\d+k\d+)", ptx
            )
        )
    )
    return (
        f"cp.async {', '.join(copies) or '-'} B · loads {' '.join(loads)} · {' '.join(products) or 'no mma'}"
    )


def table(calls: Mapping[str, Callable[[], object]], capability: int, *, code: bool) -> None:
    cuobjdump = tool("cuobjdump")
    assert cuobjdump is not None, "there is no cuobjdump"
    for name, call in calls.items():
        for made in record(call, capability):
            kernel = compiled(made, capability)
            used, warps = usage(kernel, cuobjdump), kernel.metadata.num_warps
            row = [
                name, made.kernel.__name__, f"sm_{capability}", warps, kernel.metadata.num_stages,
                used.registers, used.stack + used.local, used.shared, resident(used, warps, capability),
            ]  # fmt: skip
            sys.stdout.write(f"| {' | '.join(map(str, row))} |{' ' + facts(kernel) if code else ''}\n")
            sys.stdout.flush()


if __name__ == "__main__":
    from tests.kernels.launches import LAUNCHES, ONLY_SM90, tuned

    wanted = sys.argv[1:]
    for level, calls in ((80, LAUNCHES), (90, {**LAUNCHES, **ONLY_SM90, **dict(tuned())})):
        chosen = {name: call for name, call in calls.items() if not wanted or name in wanted}
        table(chosen, level, code=bool(wanted))
