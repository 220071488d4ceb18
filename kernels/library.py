"""The library of compiled CPU kernels: found, checked, or the reason why there is none. Needs no torch."""

from __future__ import annotations

import ctypes
from functools import cache
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path

INTERFACE = 3
"""Changes with the structures that kernels.native fills in; the library has the same."""


@cache
def library() -> ctypes.CDLL | str:
    """The library, built by g++ when tandem is installed (kernels/cpp), or why it cannot run here."""
    folder = Path(__file__).parent
    found = [path for suffix in EXTENSION_SUFFIXES if (path := folder / f"_native{suffix}").is_file()]
    if not found:
        return "not built: install tandem again where g++ is found"
    try:
        loaded = ctypes.CDLL(str(found[0]))
    except OSError as error:
        return f"not loaded: {error}"
    if loaded.tandem_interface() != INTERFACE:
        return "built from other sources: install tandem again"
    if not loaded.tandem_instructions():
        return "for processors that have AVX2 or AVX-512 with bfloat16"
    pointer, number, long = ctypes.c_void_p, ctypes.c_int, ctypes.c_int64
    loaded.tandem_open.restype = pointer
    loaded.tandem_open.argtypes = [pointer, number, number]
    loaded.tandem_close.argtypes = [pointer]
    loaded.tandem_forward.argtypes = [pointer, pointer]
    loaded.tandem_sample.argtypes = [pointer, long, long, pointer, pointer]
    loaded.tandem_multiply.argtypes = [pointer, number, pointer, long, pointer]
    return loaded


def instructions() -> str:
    """The instruction set whose kernels run: AVX-512 or AVX2. To be asked only where there is no obstacle."""
    found = library()
    assert not isinstance(found, str), found
    return "AVX-512" if found.tandem_instructions() == 512 else "AVX2"


def obstacle() -> str | None:
    """Why the compiled kernels cannot run on this machine; None if they can."""
    found = library()
    return found if isinstance(found, str) else None
