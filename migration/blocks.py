"""The blocks of a session in order: what is shared is listed once, and what is cached yonder is not sent."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import count

from engine.request import Request
from engine.sequence import Sequence as LiveSequence


class BlockList:
    """Gives every block of a request's choices a place in the session.

    The first `cached` places are the first blocks of the prompt: they are at the destination already,
    and the block at such a position of any choice is that one. After them come the others, each once,
    in the order in which they became final. While a request runs a choice may end and its blocks
    may come to hold something else: a block counts as listed only as long as a choice that had it when
    it was listed, or shared it since, still has it at the same position.
    """

    def __init__(self, cached: int, block_size: int) -> None:
        self._cached = cached
        self._block_size = block_size
        self._blocks: list[int] = []
        self._seen: dict[int, list[int]] = {}
        self.index: dict[int, int] = {}
        self.rest = 0

    def __len__(self) -> int:
        return self._cached + len(self._blocks)

    def __getitem__(self, places: slice) -> list[int]:
        """The blocks at places behind the cached ones."""
        assert places.start >= self._cached, "a cached block is not sent"
        return self._blocks[places.start - self._cached : places.stop - self._cached]

    def add(self, sequences: Sequence[LiveSequence], *, frozen: bool) -> int:
        """List what is final now: full blocks, of frozen sequences all that hold something. New length.

        `rest` is how many blocks hold something that is not final.
        """
        alive = {sequence.choice: sequence for sequence in sequences}
        if not self._unchanged(alive):
            self._forget(alive, frozen=frozen)
        written = set[int]()
        for sequence in sequences:
            full = sequence.computed // self._block_size
            some = -(-sequence.computed // self._block_size)
            written.update(sequence.blocks[full:some])
            self._hold(sequence, some if frozen else full)
        self.rest = 0 if frozen else len(written)
        return len(self)

    def _unchanged(self, alive: Mapping[int, LiveSequence]) -> bool:
        """Whether every choice still has what was listed of it, as is usual."""
        return all(
            choice in alive and alive[choice].blocks[: len(blocks)] == blocks
            for choice, blocks in self._seen.items()
        )

    def _hold(self, sequence: LiveSequence, until: int) -> None:
        seen = self._seen.setdefault(sequence.choice, [])
        fresh = sequence.blocks[len(seen) : until]
        if len(seen) >= self._cached and self.index.keys().isdisjoint(fresh):
            self.index.update(zip(fresh, count(len(self)), strict=False))
            self._blocks += fresh
        else:
            for position, block in enumerate(fresh, len(seen)):
                if block not in self.index:
                    self._list(block, position)
        seen += fresh

    def _list(self, block: int, position: int) -> None:
        if position < self._cached:
            self.index[block] = position
        else:
            self.index[block] = self._cached + len(self._blocks)
            self._blocks.append(block)

    def _forget(self, alive: Mapping[int, LiveSequence], *, frozen: bool) -> None:
        """Only what is final is held on to: the rest may change before it is looked at again."""
        kept: set[int] = set()
        for choice, blocks in self._seen.items():
            sequence = alive.get(choice)
            if sequence is not None:
                final = len(blocks) if frozen else sequence.computed // self._block_size
                both = zip(blocks[:final], sequence.blocks, strict=False)
                kept |= {block for block, now in both if block == now}
        self.index = {block: place for block, place in self.index.items() if block in kept}
        self._seen.clear()


def most(request: Request, lengths: Sequence[int], block_size: int) -> int:
    """Blocks to reserve for choices with so many output tokens each; () for a request that starts afresh."""
    prompt = len(request.prompt)
    fresh = not lengths or not all(lengths)
    grown = [length for length in lengths if length]
    return sum(-(-(prompt + length) // block_size) for length in grown) + fresh * -(-prompt // block_size)
