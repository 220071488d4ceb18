"""Block tables that stay in place on a device, one row a sequence; only what changed is sent there.

A decode step lengthens one row in `block_size` by one entry. Rows are compared, not rebuilt, so a step costs
a comparison of lists in C (about 4 ns a block), which is 1 % of the time that a GPU takes to read the KV.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

_FEW = 32
"""More pieces than this go as whole rows in one copy: a small copy costs the host about 5 µs."""


class BlockRows:
    """Rows of block numbers: pinned memory of the host and its twin `table` on the device.

    `table` is int32 [rows, width]. Entries beyond a row's own are left over from others: kernels ignore them.
    """

    def __init__(self, rows: int, width: int, device: torch.device) -> None:
        self.table = torch.zeros(rows, width, dtype=torch.int32, device=device)
        self._host = torch.zeros(rows, width, dtype=torch.int32, pin_memory=device.type == "cuda")
        self._numbers = self._host.numpy()
        self._known: list[list[int]] = [[] for _ in range(rows)]

    def update(self, tables: Sequence[Sequence[int]]) -> int:
        """Row i becomes tables[i]; rows beyond stay. The copies are queued, not waited for: the pinned memory
        may not be changed by the next call before they are done. Returns how many rows changed."""
        pieces = []
        for row, given in enumerate(tables):
            blocks = given if isinstance(given, list) else list(given)
            known = self._known[row]
            if known == blocks:
                continue
            same = len(known) if blocks[: len(known)] == known else 0
            self._numbers[row, same : len(blocks)] = blocks[same:]
            self._known[row] = list(blocks)
            pieces.append((row, same, len(blocks)))
        if len(pieces) > _FEW:
            count = len(tables)
            self.table[:count].copy_(self._host[:count], non_blocking=True)
            return len(pieces)
        for row, begin, end in pieces:
            self.table[row, begin:end].copy_(self._host[row, begin:end], non_blocking=True)
        return len(pieces)
