"""KV whose heads are split over ranks travels as if they were not, to whoever splits them otherwise."""

from __future__ import annotations

import pytest
import torch

from kernels import dispatch
from model.kv_cache import KVCache, KVLayout
from model.kv_ranks import RankedKV
from tests.engine.mutants import mutate

CPU = torch.device("cpu")
HEADS = 6
BLOCKS = 12


def ranks(heads: tuple[int, ...], size: int = 4, dtype: str = "float32") -> list[KVCache]:
    return [KVCache(KVLayout(3, size, count, 5, dtype), BLOCKS, CPU, dispatch.choose(CPU)) for count in heads]


def filled(
    heads: tuple[int, ...], size: int = 4, dtype: str = "float32"
) -> tuple[list[KVCache], torch.Tensor]:
    """Ranks that hold slices of one whole cache, and that cache."""
    whole = torch.randn(3, 2, BLOCKS, size, HEADS, 5, generator=torch.Generator().manual_seed(3))
    made = ranks(heads, size, dtype)
    for one, part in zip(made, whole.split(list(heads), dim=4), strict=True):
        one.pool.copy_(part)
    return made, whole.to(made[0].pool.dtype)


SPLITS = pytest.mark.parametrize(
    ("here", "there"), [((6,), (3, 3)), ((3, 3), (6,)), ((2, 2, 2), (3, 3)), ((1, 5), (4, 2))], ids=str
)


@SPLITS
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_every_head_arrives_however_either_end_splits_them(
    here: tuple[int, ...], there: tuple[int, ...], dtype: str
) -> None:
    source, whole = filled(here, dtype=dtype)
    target = ranks(there, dtype=dtype)
    sender, receiver = RankedKV(source), RankedKV(target)
    data = bytearray(3 * sender.block_nbytes)
    sender.gather([5, 0, 7], memoryview(data))
    receiver.scatter([2, 9, 1], memoryview(data))
    joined = torch.cat([one.pool for one in target], dim=4)
    assert torch.equal(joined[:, :, [2, 9, 1]], whole[:, :, [5, 0, 7]])


@SPLITS
def test_blocks_of_another_size_arrive_too(here: tuple[int, ...], there: tuple[int, ...]) -> None:
    source, whole = filled(here, size=2)
    target = ranks(there, size=6)
    slots = [9, 8, 0, 1, 23, 22, 3, 4, 5, 6, 7, 10]
    sender, receiver = RankedKV(source), RankedKV(target)
    data = bytearray(2 * receiver.block_nbytes)
    sender.gather_slots(slots, 6, memoryview(data))
    receiver.scatter([4, 0], memoryview(data))
    joined = torch.cat([one.pool for one in target], dim=4)[:, :, [4, 0]].flatten(2, 3)
    assert torch.equal(joined, whole.flatten(2, 3)[:, :, slots])


def test_an_unsplit_cache_and_one_of_one_rank_are_the_same_bytes() -> None:
    (only,), _ = filled((HEADS,))
    wrapped = RankedKV([only])
    assert wrapped.layout == only.layout
    assert wrapped.block_nbytes == only.block_nbytes
    data, same = bytearray(only.block_nbytes), bytearray(only.block_nbytes)
    only.gather([3], memoryview(data))
    wrapped.gather([3], memoryview(same))
    assert data == same


def test_ranks_with_different_blocks_are_refused() -> None:
    with pytest.raises(ValueError, match="different blocks"):
        RankedKV([*ranks((3,)), *ranks((3,), size=8)])


def test_nothing_is_moved_without_blocks() -> None:
    store = RankedKV(ranks((3, 3)))
    store.gather([], memoryview(b""))
    store.gather_slots([], 4, memoryview(b""))
    store.scatter([], memoryview(b""))


def test_a_rank_that_took_its_neighbours_heads_would_be_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    mutate(monkeypatch, RankedKV, "scatter", "first = last", "first = 0")
    with pytest.raises((AssertionError, ValueError)):
        test_every_head_arrives_however_either_end_splits_them((6,), (3, 3), "float32")
