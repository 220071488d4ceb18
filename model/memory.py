"""How much memory this process may still take, and keeping what it has taken."""

from __future__ import annotations

import ctypes
import mmap
import sys
import threading
from pathlib import Path

_MEMINFO = Path("/proc/meminfo")
_CGROUP = Path("/sys/fs/cgroup")
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
_LARGE = 2**30

_POPULATE_WRITE = 23  # madvise(2), Linux 5.14; what the pages hold stays as it is
_SLICE = 1 << 18
_PAUSE = 0.0005


def available_memory() -> int:
    """Bytes that can be allocated without swapping, within the control group's limit if there is one."""
    try:
        lines = _MEMINFO.read_text().splitlines()
        free = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))
    except (OSError, StopIteration):
        return sys.maxsize
    return min(free, _left_in_group())


def _left_in_group() -> int:
    """Bytes below the control group's limit. Cached files count as free: the kernel drops them first."""
    try:
        limit = int((_CGROUP / "memory.max").read_text())  # "max" where there is none
        used = int((_CGROUP / "memory.current").read_text())
        counts = (line.split() for line in (_CGROUP / "memory.stat").read_text().splitlines())
        cached = sum(int(count) for name, count in counts if name in ("inactive_file", "active_file"))
    except (OSError, ValueError):
        return sys.maxsize
    return max(0, limit - used + cached)


def small_pages(size: int) -> mmap.mmap:
    """Zeroed memory of this process, which is taken page by page as it is written.

    A block of a KV cache has a piece in each layer: in huge pages, which numpy asks for, the first request
    would clear hundreds of megabytes (a second in a virtual machine), and keep them.
    """
    memory = mmap.mmap(-1, max(size, 1), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    if hasattr(mmap, "MADV_NOHUGEPAGE"):
        memory.madvise(mmap.MADV_NOHUGEPAGE)
    return memory


def take_pages(start: int, size: int, ended: threading.Event) -> None:
    """Have the kernel give the pages of `size` bytes from `start`, a page's first, until `ended` is set. What
    they hold, or are given meanwhile, stays.

    For a thread of its own, which leaves most of a core to others: a page costs a microsecond or two, and
    who writes a prompt's keys and values first pays that for thousands. Another kernel gives them then.
    """
    if sys.platform != "linux":
        return
    madvise = ctypes.CDLL(None).madvise
    for at in range(0, size, _SLICE):
        length = ctypes.c_size_t(min(_SLICE, size - at))
        if madvise(ctypes.c_void_p(start + at), length, _POPULATE_WRITE) or ended.wait(_PAUSE):
            return


def keep_freed_memory() -> None:
    """Make glibc's allocator reuse large buffers instead of returning them to the kernel.

    Every step allocates megabytes that it frees again; mapping and faulting them in each time costs a third
    of a bfloat16 prefill. A C library without `mallopt` keeps its own ways.
    """
    library = ctypes.CDLL(None)
    if hasattr(library, "mallopt"):
        library.mallopt(_MMAP_THRESHOLD, _LARGE)
        library.mallopt(_TRIM_THRESHOLD, _LARGE)
