"""Prefix keys stand for everything that KV depends on, and the least recently read block goes first."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys

import pytest

from engine.prefix_cache import PrefixCache, extend, fingerprint, root


def keys(tokens: list[int], *, start: bytes = b"", block_size: int = 4) -> list[bytes]:
    found: list[bytes] = []
    extend(found, start, tokens, block_size)
    return found


def test_the_key_of_a_block_is_sha256_over_its_parent_and_its_tokens() -> None:
    first = hashlib.sha256(b"root" + b"\1\0\0\0\2\0\0\0").digest()
    second = hashlib.sha256(first + b"\3\0\0\0\4\0\0\0").digest()
    assert keys([1, 2, 3, 4, 5], start=b"root", block_size=2) == [first, second]


def test_only_full_blocks_have_keys() -> None:
    assert len(keys(list(range(11)))) == 2


def test_keys_grown_piece_by_piece_are_those_of_the_whole() -> None:
    grown: list[bytes] = []
    tokens = list(range(40))
    for first, last in ((0, 8), (8, 12), (12, 40)):
        extend(grown, b"r", tokens[first:last], 4)
    assert grown == keys(tokens, start=b"r")


def test_equal_blocks_after_different_prefixes_have_different_keys() -> None:
    assert keys([1, 1, 1, 1, 2, 2, 2, 2])[1] != keys([3, 3, 3, 3, 2, 2, 2, 2])[1]


@pytest.mark.parametrize(
    "other",
    [
        root(fingerprint("weights2", "float32", "kv"), "adapter", "salt"),
        root(fingerprint("weights", "bfloat16", "kv"), "adapter", "salt"),
        root(fingerprint("weights", "float32", "kv2"), "adapter", "salt"),
        root(fingerprint("weights", "float32", "kv"), "adapter2", "salt"),
        root(fingerprint("weights", "float32", "kv"), "adapter", "salt2"),
        root(fingerprint("weights", "float32", "kv"), "adapters", "alt"),
    ],
    ids=["weights", "numerics", "kv format", "adapter", "salt", "border between two"],
)
def test_the_root_differs_when_anything_that_kv_depends_on_differs(other: bytes) -> None:
    assert other != root(fingerprint("weights", "float32", "kv"), "adapter", "salt")


def test_keys_are_the_same_in_every_process() -> None:
    code = (
        "from engine.prefix_cache import *; k = [];"
        "extend(k, root(fingerprint('w', 'n', 'f'), 'a', 's'), range(8), 4); print(k[-1].hex())"
    )
    env = {**os.environ, "PYTHONHASHSEED": "7"}
    other = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=env)
    start = root(fingerprint("w", "n", "f"), "a", "s")
    assert other.stdout.strip() == keys(list(range(8)), start=start)[-1].hex()


def test_the_block_unread_for_longest_is_evicted_first() -> None:
    cache = PrefixCache()
    for block, key in enumerate((b"a", b"b", b"c")):
        cache.insert([key], [block])
    for block in (1, 0, 2):
        cache.retire([block])
    cache.revive(1)
    cache.retire([1])
    assert cache.evict(3) == [0, 2, 1]


def test_an_evicted_block_is_not_found_any_more() -> None:
    cache = PrefixCache()
    cache.insert([b"a"], [0])
    cache.retire([0])
    cache.evict(1)
    assert cache.find([b"a"], 9) == []


def test_the_search_ends_at_the_first_key_that_is_not_there() -> None:
    cache = PrefixCache()
    cache.insert([b"a"], [0])
    cache.insert([b"c"], [2])
    assert cache.find([b"a", b"b", b"c"], 9) == [0]


def test_the_search_ends_at_its_limit() -> None:
    cache = PrefixCache()
    cache.insert([b"a"], [0])
    cache.insert([b"b"], [1])
    assert cache.find([b"a", b"b"], 1) == [0]


def test_a_second_block_with_the_same_content_stays_unknown() -> None:
    cache = PrefixCache()
    cache.insert([b"a"], [0])
    cache.insert([b"a"], [1])
    assert cache.find([b"a"], 9) == [0]
    assert cache.retire([1]) == [1]
