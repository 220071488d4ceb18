"""Every Triton kernel compiles for sm_80 and sm_90 within its budgets: no spilled register, shared memory."""

from __future__ import annotations

from pathlib import Path

import pytest

from kernels import paged_attention
from tests.kernels.compiling import SHARED_BYTES, Launch, compiled, record, tool, usage
from tests.kernels.launches import LAUNCHES, ONLY_SM90, Call, every, tuned


@pytest.fixture(autouse=True)
def cuobjdump(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> Path:
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path_factory.getbasetemp() / "triton"))
    found = tool("cuobjdump")
    if found is None:
        pytest.skip("cuobjdump is neither bundled with Triton nor on the path")
    return found


def check(call: Call, capability: int, cuobjdump: Path, stack: int = 0) -> None:
    launches = record(call, capability)
    assert launches
    for made in launches:
        used = usage(compiled(made, capability), cuobjdump)
        where = f"{made.kernel.__name__} on sm_{capability}: {used}, {made.options}"
        assert used.stack <= stack and not used.local, f"it spills: {where}"
        assert used.shared <= SHARED_BYTES[capability], where


def every_time(name: str, capability: int) -> bool:
    """Of attention, which takes longest: the usual and the largest head size for sm_90, one for sm_80."""
    if not name.startswith(("prefill", "decode")):
        return True
    if capability == 80:
        return name in ("prefill-128", "decode-128")
    return "-256" in name or ("-128" in name and "fp16" not in name)


@pytest.mark.parametrize("capability", [80, 90])
@pytest.mark.parametrize("name", LAUNCHES)
def test_a_kernel_compiles_within_its_budgets(
    name: str, capability: int, full: bool, cuobjdump: Path
) -> None:
    if not full and not every_time(name, capability):
        pytest.skip("another variant of attention: run with --full")
    check(LAUNCHES[name], capability, cuobjdump)


@pytest.mark.parametrize("name", ONLY_SM90)
def test_a_kernel_with_e4m3_storage_compiles_for_sm90(name: str, cuobjdump: Path) -> None:
    check(ONLY_SM90[name], 90, cuobjdump)


@pytest.mark.parametrize("capability", [80, 90])
def test_every_head_size_and_type_compiles_within_its_budgets(
    capability: int, full: bool, cuobjdump: Path
) -> None:
    """sm_80 converts float8 in software: there four registers may spill."""
    wrong = []
    for call in every(capability) if full else ():
        try:
            check(call, capability, cuobjdump, stack=16 if capability == 80 else 0)
        except AssertionError as error:
            wrong.append(str(error).splitlines()[0])
    assert not wrong, "\n".join(wrong)


def test_tiles_that_are_compared_compile_within_their_budgets_for_sm90(full: bool, cuobjdump: Path) -> None:
    for _, call in tuned() if full else ():
        check(call, 90, cuobjdump)


def test_a_spilling_kernel_is_noticed(cuobjdump: Path) -> None:
    made = record(LAUNCHES["prefill-128-masked"], 90)[0]
    crowded = Launch(made.kernel, {**made.arguments, "ROWS": 128, "TILE": 64}, {"num_warps": 4})
    used = usage(compiled(crowded, 90), cuobjdump)
    assert used.stack + used.local > 0


def test_a_long_sequence_is_split_and_a_full_batch_is_not() -> None:
    assert paged_attention.split_count(1, 8, 4096, 132) == 32
    assert paged_attention.split_count(1, 8, 200, 132) == 2
    assert paged_attention.split_count(1, 1, 10**6, 132) == 64
    assert paged_attention.split_count(256, 8, 4096, 132) == 1
