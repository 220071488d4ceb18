"""What the papers compare with: batch policies that nobody should choose, on the same engine core."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from collections.abc import Sequence as SequenceOf
from itertools import chain, islice

from engine.batch import Share, due
from engine.sequence import Phase, Sequence


class _Decodes:
    def steady(self, running: SequenceOf[Sequence], now: float) -> int:
        """Nothing but decodes is ever in a step of decodes."""
        return sys.maxsize


def _decodes(running: SequenceOf[Sequence]) -> list[Share]:
    return [Share(one, one.remaining) for one in running if one.phase is Phase.DECODE]


def _prompts(running: SequenceOf[Sequence], waiting: Iterable[Sequence], most: int) -> list[Share]:
    """Whole prompts, as many as fit `most` tokens, one at least."""
    shares: list[Share] = []
    for sequence in chain((one for one in running if one.phase is Phase.PREFILL), waiting):
        tokens = due(sequence)
        if shares and tokens > most:
            break
        shares.append(Share(sequence, tokens))
        most -= tokens
    return shares


class PrefillFirst(_Decodes):
    """vLLM before chunked prefill: whole prompts as soon as there is one, and decodes wait meanwhile.

    At most `batch` run, for whom the memory has to be enough.
    """

    def __init__(self, most: int, batch: int = 256) -> None:
        self._most = most
        self._batch = batch

    def share(self, running: SequenceOf[Sequence], waiting: Iterable[Sequence], now: float) -> list[Share]:
        joining = islice(waiting, max(0, self._batch - len(running)))
        return _prompts(running, joining, self._most) or _decodes(running)


class DecodesFirst(_Decodes):
    """FasterTransformer: requests run in batches, and nobody joins before the last has ended."""

    def __init__(self, batch: int) -> None:
        self._batch = batch

    def share(self, running: SequenceOf[Sequence], waiting: Iterable[Sequence], now: float) -> list[Share]:
        if running:
            return _prompts(running, (), sys.maxsize) or _decodes(running)
        first = [one for one, _ in zip(waiting, range(self._batch), strict=False)]
        return _prompts(first, (), sys.maxsize) or [Share(one, due(one)) for one in first]


class WholePrompts(_Decodes):
    """ORCA: every step takes all decodes and whole prompts together."""

    def __init__(self, most: int) -> None:
        self._most = most

    def share(self, running: SequenceOf[Sequence], waiting: Iterable[Sequence], now: float) -> list[Share]:
        return _decodes(running) + _prompts(running, waiting, self._most)


class ChunksAlone(_Decodes):
    """Chunked prefill without hybrid batches: a chunk, then a step of decodes, in turns."""

    def __init__(self, chunk: int) -> None:
        self._chunk = chunk
        self._turn = False

    def share(self, running: SequenceOf[Sequence], waiting: Iterable[Sequence], now: float) -> list[Share]:
        decodes = _decodes(running)
        self._turn = not self._turn
        if self._turn and decodes:
            return decodes
        for sequence in chain((one for one in running if one.phase is Phase.PREFILL), waiting):
            return [Share(sequence, min(self._chunk, due(sequence)))]
        return decodes
