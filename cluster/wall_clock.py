"""Has the wall clock of this process jump on purpose, to see that nothing here depends on it.

Only what Python code reads with `time.time()` jumps; the monotonic clock and other processes don't.
"""

from __future__ import annotations

import re
import time

from engine.errors import InvalidParameter

_TRUE_TIME = time.time
_JUMP = re.compile(r"clock=([+-]?\d+(?:\.\d+)?)s")


def take(fault: str) -> str:
    """Set the clock as the word `clock=+3600s` of a fault says, right where there is none; gives the others.

    Raises InvalidParameter for a jump that is none.
    """
    words = fault.split()
    jumps = [word for word in words if word.startswith("clock=")]
    match = _JUMP.fullmatch(jumps[0]) if jumps else None
    if len(jumps) > 1 or (jumps and match is None):
        raise InvalidParameter(f"{' '.join(jumps)!r} is no jump of a clock: clock=+3600s is", param="fault")
    ahead = float(match[1]) if match else 0.0
    time.time = (lambda: _TRUE_TIME() + ahead) if ahead else _TRUE_TIME
    return " ".join(word for word in words if word not in jumps)
