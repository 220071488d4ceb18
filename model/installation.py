"""What was compiled when tandem was installed here. Needs no torch."""

from __future__ import annotations

from kernels import library


def kernels_obstacle() -> str | None:
    """Why the compiled CPU kernels cannot run on this machine; None if they can."""
    return library.obstacle()


def kernels_instructions() -> str:
    """The instruction set of the compiled CPU kernels, where nothing stands in their way."""
    return library.instructions()
