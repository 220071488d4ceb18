"""One HTTP request under way: a run per prompt, whose choices are numbered through."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence

from cluster.openai_answers import Choice, Usage
from cluster.request_driver import Run
from cluster.stream_order import Piece
from engine.errors import DeadlineExceeded

Update = list[tuple[int, list[Piece]]]
"""New tokens by number of the choice."""


class Job:
    """Choice c of prompt p has the number p × n + c. `finished` is told once, with the error if any."""

    def __init__(
        self,
        runs: Sequence[Run],
        changed: asyncio.Event,
        echo: Sequence[str],
        deadline: float,
        finished: Callable[[Job, BaseException | None], None],
    ) -> None:
        self.runs = runs
        self._n = runs[0].request.sampling.n
        self.choices = [Choice(text=text, shown=len(text)) for text in echo for _ in range(self._n)]
        self._changed = changed
        self._deadline = deadline
        self._finished: Callable[[Job, BaseException | None], None] | None = finished

    async def next(self, patience: float | None = None) -> Update | None:
        """What has come since the last call; [] at the end, None if nothing came for `patience` seconds.

        Raises what ended a run, which ends them all, or DeadlineExceeded.
        """
        give_up = None if patience is None else time.monotonic() + patience
        while True:
            update = self._take()
            if update:
                return update
            for run in self.runs:
                if run.error is not None:
                    raise run.error
            if all(run.ended for run in self.runs):
                return []
            now = time.monotonic()
            if now >= self._deadline:
                raise DeadlineExceeded("the request took longer than it may; ask for fewer tokens")
            if give_up is not None and now >= give_up:
                return None
            self._changed.clear()
            wait = min(self._deadline, give_up or self._deadline) - now
            try:
                async with asyncio.timeout(wait):
                    await self._changed.wait()
            except TimeoutError:
                continue

    def close(self, error: BaseException | None = None) -> None:
        """The end, however it came about: what still runs is dropped everywhere."""
        for run in self.runs:
            run.close()
        finished, self._finished = self._finished, None
        if finished is not None:
            finished(self, error)

    def usage(self) -> Usage:
        return Usage(
            prompt=sum(len(run.request.prompt) for run in self.runs),
            completion=sum(choice.tokens for choice in self.choices),
            cached=sum(run.progress.cached for run in self.runs),
        )

    def position(self) -> str:
        """Tokens of every choice so far."""
        return ",".join(str(choice.tokens) for choice in self.choices)

    def _take(self) -> Update:
        update: Update = []
        for number, run in enumerate(self.runs):
            by_choice: dict[int, list[Piece]] = {}
            for piece in run.take():
                by_choice.setdefault(number * self._n + piece.choice, []).append(piece)
            update.extend(sorted(by_choice.items()))
        for index, pieces in update:
            choice = self.choices[index]
            for piece in pieces:
                choice.tokens += piece.token is not None
                if piece.finish:
                    choice.finish, choice.stop_reason = piece.finish, piece.stop_reason
        return update
