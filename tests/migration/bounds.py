"""How much memory something takes at most: what reads from a socket must not take what a stranger says."""

from __future__ import annotations

import tracemalloc
from collections.abc import Iterator
from contextlib import contextmanager

SLACK = 1 << 18
"""Bytes that anything may take, whatever it reads."""


@contextmanager
def takes_at_most(nbytes: int) -> Iterator[None]:
    """Fails if more memory is in use at any moment within."""
    tracemalloc.start()
    try:
        before, _ = tracemalloc.get_traced_memory()
        yield
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak - before <= nbytes + SLACK, f"{peak - before} bytes, where {nbytes} are allowed"
