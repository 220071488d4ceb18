"""Blocks leave the KV cache as bytes and come back unchanged; wrong requests are refused."""

from __future__ import annotations

import threading

import psutil
import pytest
import torch

from engine.errors import SetupError
from kernels import dispatch
from model import kv_cache
from model.kv_cache import KVCache, KVLayout
from model.memory import small_pages

CPU = torch.device("cpu")
LAYOUT = KVLayout(layers=3, block_size=4, kv_heads=2, head_dim=6, dtype="float32")


def cache(blocks: int = 8, dtype: str = "float32") -> KVCache:
    layout = KVLayout(layers=3, block_size=4, kv_heads=2, head_dim=6, dtype=dtype)
    made = KVCache(layout, blocks, CPU, dispatch.choose(CPU))
    made.pool.copy_(torch.randn(made.pool.shape, generator=torch.Generator().manual_seed(1)))
    return made


def test_sizes_follow_from_the_layout() -> None:
    assert LAYOUT.block_shape == (3, 2, 4, 2, 6)
    assert LAYOUT.block_nbytes == 3 * 2 * 4 * 2 * 6 * 4


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float64"])
def test_gathered_bytes_are_the_blocks_one_after_another(dtype: str) -> None:
    source = cache(dtype=dtype)
    out = bytearray(3 * source.block_nbytes)
    source.gather([5, 0, 7], memoryview(out))
    expected = b"".join(
        source.pool[:, :, block].contiguous().view(torch.uint8).numpy().tobytes() for block in (5, 0, 7)
    )
    assert bytes(out) == expected


def test_scattered_blocks_take_new_places_in_any_runs() -> None:
    source, target = cache(), cache()
    target.pool.zero_()
    data = bytearray(3 * source.block_nbytes)
    source.gather([5, 0, 7], memoryview(data))
    target.scatter([2], memoryview(data)[: source.block_nbytes])
    target.scatter([1, 6], memoryview(bytes(data))[source.block_nbytes :])
    for from_block, to_block in ((5, 2), (0, 1), (7, 6)):
        assert torch.equal(target.pool[:, :, to_block], source.pool[:, :, from_block])
    assert not target.pool[:, :, [0, 3, 4, 5, 7]].any()


def test_a_view_into_a_larger_buffer_is_filled_in_place() -> None:
    source = cache()
    buffer = bytearray(b"\xff" * (2 * source.block_nbytes + 10))
    source.gather([1], memoryview(buffer)[5 : 5 + source.block_nbytes])
    assert buffer[:5] == b"\xff" * 5
    assert buffer[5 + source.block_nbytes :] == b"\xff" * (source.block_nbytes + 5)


@pytest.mark.parametrize("size", [1, 2, 3, 4, 6, 12])
def test_slots_are_gathered_as_blocks_of_any_size(size: int) -> None:
    source = cache()
    target = KVCache(KVLayout(3, size, 2, 6, "float32"), 12, CPU, dispatch.choose(CPU))
    slots = [29, 28, 3, 0, 17, 16, 15, 14, 5, 6, 7, 31]
    data = bytearray(len(slots) * source.block_nbytes // 4)
    source.gather_slots(slots, size, memoryview(data))
    target.scatter(list(range(12 // size)), memoryview(data))
    landed = target.pool.flatten(2, 3)[:, :, :12]
    assert torch.equal(landed, source.pool.flatten(2, 3)[:, :, slots])


@pytest.mark.parametrize(
    ("slots", "size", "error"), [([32], 1, IndexError), ([-1], 1, IndexError), ([0, 1, 2], 2, ValueError)]
)
def test_slots_that_are_not_there_or_fill_no_block_are_refused(
    slots: list[int], size: int, error: type[Exception]
) -> None:
    made = cache()
    with pytest.raises(error):
        made.gather_slots(slots, size, memoryview(bytearray(len(slots) * made.block_nbytes // 4)))


def test_copies_have_the_effect_of_one_after_another() -> None:
    made = cache()
    before = made.pool.clone()
    made.copy([(0, 1), (1, 2), (3, 0), (4, 2)])
    for block, origin in {0: 3, 1: 0, 2: 4, 3: 3, 4: 4}.items():
        assert torch.equal(made.pool[:, :, block], before[:, :, origin])


def test_layers_share_the_pool() -> None:
    made = cache()
    keys, values = made.layer(1)
    keys[2, 3] = 7.0
    assert keys.is_contiguous()
    assert values.is_contiguous()
    assert (made.pool[1, 0, 2, 3] == 7.0).all()


def test_nothing_is_moved_without_blocks() -> None:
    made = cache()
    made.gather([], memoryview(b""))
    made.scatter([], memoryview(b""))
    made.copy([])


@pytest.mark.parametrize("blocks", [[8], [-1], [0, 100]])
def test_blocks_outside_the_pool_are_refused(blocks: list[int]) -> None:
    made = cache()
    data = memoryview(bytearray(len(blocks) * made.block_nbytes))
    for move in (made.gather, made.scatter):
        with pytest.raises(IndexError, match="pool of 8"):
            move(blocks, data)


def test_a_buffer_of_another_size_is_refused() -> None:
    made = cache()
    for move in (made.gather, made.scatter):
        with pytest.raises(ValueError, match="2 blocks take"):
            move([0, 1], memoryview(bytearray(made.block_nbytes)))


def test_a_block_is_not_written_twice() -> None:
    made = cache()
    with pytest.raises(ValueError, match="twice"):
        made.scatter([3, 3], memoryview(bytearray(2 * made.block_nbytes)))


def test_too_little_memory_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kv_cache, "available_memory", lambda: 10**4)
    with pytest.raises(SetupError, match=r"KV cache of .* \(100 blocks\) does not fit .* make it smaller"):
        cache(blocks=100)


def test_a_pool_takes_memory_only_where_it_is_written() -> None:
    """One byte in every 4 MiB: 256 KiB of small pages, 128 MiB of huge ones."""
    pool, process = small_pages(256 << 20), psutil.Process()
    before = process.memory_info().rss
    for at in range(0, len(pool), 4 << 20):
        pool[at] = 1
    assert process.memory_info().rss - before < 16 << 20


def test_a_pool_takes_its_memory_before_it_is_used_and_keeps_what_it_holds() -> None:
    made = KVCache(LAYOUT, 20_000, CPU, dispatch.choose(CPU))
    block = memoryview(bytes(range(256)) * (made.block_nbytes // 256 + 1))[: made.block_nbytes]
    made.scatter([7], block)
    process = psutil.Process()
    before = process.memory_info().rss
    populated(made, threading.Event())
    assert process.memory_info().rss - before > 0.9 * made.pool.nbytes
    kept = bytearray(made.block_nbytes)
    made.gather([7], memoryview(kept))
    assert kept == block and not made.pool[:, :, 8:].any()


def test_a_pool_takes_no_memory_once_it_is_over() -> None:
    made, over, process = (
        KVCache(LAYOUT, 20_000, CPU, dispatch.choose(CPU)),
        threading.Event(),
        psutil.Process(),
    )
    over.set()
    before = process.memory_info().rss
    populated(made, over)
    assert process.memory_info().rss - before < 0.1 * made.pool.nbytes


def populated(made: KVCache, over: threading.Event) -> None:
    thread = threading.Thread(target=made.populate, args=(over,))
    thread.start()
    thread.join(30)
    assert not thread.is_alive()
