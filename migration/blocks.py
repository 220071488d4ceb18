"""The blocks of a session in order: what is shared is listed once, and what is cached yonder is not sent."""

from __future__ import annotations

from collections.abc import Sequence

from engine.request import Request
from engine.sequence import Sequence as LiveSequence


class BlockList:
    """Gives every block of a request's choices a place in the session.

    The first `cached` places are the first blocks of the prompt: they are at the destination already,
    and the block at such a position of any choice is that one. After them come the others, each once,
    in the order in which they became final.
    """

    def __init__(self, cached: int, block_size: int) -> None:
        self._cached = cached
        self._block_size = block_size
        self._blocks: list[int] = []
        self.index: dict[int, int] = {}

    def __len__(self) -> int:
        return self._cached + len(self._blocks)

    def __getitem__(self, places: slice) -> list[int]:
        """The blocks at places behind the cached ones."""
        assert places.start >= self._cached, "a cached block is not sent"
        return self._blocks[places.start - self._cached : places.stop - self._cached]

    def add(self, sequences: Sequence[LiveSequence], *, frozen: bool) -> int:
        """List what is final now: full blocks, of frozen sequences all that hold something. New length."""
        for sequence in sequences:
            final = sequence.computed // self._block_size
            if frozen:
                final = -(-sequence.computed // self._block_size)
            for position, block in enumerate(sequence.blocks[:final]):
                if block in self.index:
                    continue
                if position < self._cached:
                    self.index[block] = position
                else:
                    self.index[block] = len(self)
                    self._blocks.append(block)
        return len(self)


def most(request: Request, lengths: Sequence[int], block_size: int) -> int:
    """Blocks to reserve for choices with so many output tokens each; () for a request that starts afresh."""
    prompt = len(request.prompt)
    fresh = not lengths or not all(lengths)
    grown = [length for length in lengths if length]
    return sum(-(-(prompt + length) // block_size) for length in grown) + fresh * -(-prompt // block_size)
