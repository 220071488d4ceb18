"""The blocks of one movement in the size of the destination's, whatever size they have here.

    here, 8 slots a block     │ 7     │ 3     │ 12    │ 5     │ 9     │      a sequence's table
    there, 32 slots a block   │ 0                             │ 1     …      what is listed, sent and named

A piece is what fills one block there: a run of slots that begins in one block here and goes on in those
that follow it in some table. Choices that share all blocks of a piece share the piece.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

from engine.sequence import Sequence as LiveSequence
from migration.transport import BlockStore, Buffer


class Piece(NamedTuple):
    """So many slots, from `start` of the first of `blocks` on. The last piece of a table may lack some."""

    start: int
    blocks: tuple[int, ...]


class Cut:
    """Gives every piece a number, which stands for a block of `size` slots wherever blocks are named."""

    def __init__(self, store: BlockStore, size: int) -> None:
        self._store = store
        self._here = store.layout.block_size
        self.size = size
        self._pieces: list[Piece] = []
        self._numbers: dict[Piece, int] = {}

    @property
    def block_nbytes(self) -> int:
        return self._store.block_nbytes // self._here * self.size if self._cuts else self._store.block_nbytes

    @property
    def _cuts(self) -> bool:
        return self.size != self._here

    def of(self, sequences: Sequence[LiveSequence]) -> Sequence[LiveSequence]:
        """The sequences with tables of pieces: those that hold something."""
        if not self._cuts:
            return sequences
        return [replace(one, blocks=self._table(one.blocks, one.computed)) for one in sequences]

    def gather(self, numbers: Sequence[int], out: Buffer) -> None:
        """Copy pieces into `out`, len(numbers) · block_nbytes bytes. See `BlockStore.gather`."""
        if not self._cuts:
            self._store.gather(numbers, out)
            return
        slots = [slot for number in numbers for slot in self._slots(self._pieces[number])]
        self._store.gather_slots(slots, self.size, out)

    def _table(self, blocks: Sequence[int], computed: int) -> list[int]:
        numbers = []
        for first in range(0, computed, self.size):
            last = min(first + self.size, computed)
            run = tuple(blocks[first // self._here : -(-last // self._here)])
            numbers.append(self._number(Piece(first % self._here, run)))
        return numbers

    def _number(self, piece: Piece) -> int:
        number = self._numbers.setdefault(piece, len(self._pieces))
        if number == len(self._pieces):
            self._pieces.append(piece)
        return number

    def _slots(self, piece: Piece) -> list[int]:
        """Where a piece lies here. What lacks at its end is filled with its last slot: nobody reads it."""
        slots = [block * self._here + place for block in piece.blocks for place in range(self._here)]
        slots = slots[piece.start : piece.start + self.size]
        return slots + slots[-1:] * (self.size - len(slots))
