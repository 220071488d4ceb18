"""When each chunk of a prompt was done at an instance, until its first token takes the news home."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable

from engine.outcome import StepOutcome

MOST_REQUESTS = 4096
MOST_CHUNKS = 64
"""Of one prompt; further ones count as one with the last."""


class ChunkNotes:
    """`observe` is called in the engine's thread after each step, `take` in any other."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._notes: OrderedDict[str, list[tuple[int, float]]] = OrderedDict()

    def observe(self, outcome: StepOutcome) -> None:
        now = self._clock()
        for request_id, computed in outcome.progress:
            notes = self._notes.setdefault(request_id, [])
            if len(notes) >= MOST_CHUNKS:
                notes.pop()
            notes.append((computed, now))
        while len(self._notes) > MOST_REQUESTS:
            self._notes.popitem(last=False)

    def take(self, request_id: str, prompt: int, cached: int, drawn: float) -> list[tuple[int, float]]:
        """Tokens of each chunk, and how many seconds before `drawn` it was done; forgets the request.

        The last chunk of a prompt of `prompt` tokens is done when the first token is drawn, whether it has
        been noted yet or not.
        """
        done, chunks = cached, []
        for computed, at in self._notes.pop(request_id, []):
            if done < computed < prompt:
                chunks.append((computed - done, max(0.0, drawn - at)))
                done = computed
        if done < prompt:
            chunks.append((prompt - done, 0.0))
        return chunks
