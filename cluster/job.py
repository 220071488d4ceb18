"""One HTTP request under way: a run per prompt, whose choices are numbered through, and who reads them.

    Run ─┐
    Run ─┴▶ Job: all tokens in the order in which they came ─┬▶ Reader of a client
                                                             └▶ Reader of the same client, back again

A job ends when its runs do, or when nobody has read it for its lease, which only a resumable one has.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence

from cluster.openai_answers import Choice, Usage
from cluster.request_driver import Run
from cluster.resume import Seen, check_shape, unseen
from cluster.stream_order import Piece
from engine.errors import DeadlineExceeded

Update = list[tuple[int, list[Piece]]]
"""New tokens by number of the choice."""

Finished = Callable[["Job", BaseException | None], None]
Had = Callable[[int, str], None]


class Job:
    """Choice c of prompt p has the number p × n + c. `finished` is told once, with the error if any.

    One that is `kept` keeps all tokens for further readers; with a `lease`, in seconds, it outlives its
    readers for that long.
    """

    def __init__(
        self,
        runs: Sequence[Run],
        changed: asyncio.Event,
        echo: Sequence[str],
        deadline: float,
        finished: Finished,
        *,
        digest: bytes = b"",
        kept: bool = False,
        lease: float = 0.0,
    ) -> None:
        self.runs = runs
        self.changed = changed
        self.deadline = deadline
        self._n = runs[0].request.sampling.n
        self._echo = [text for text in echo for _ in range(self._n)]
        self.choices = [Choice() for _ in self._echo]
        self._tokens: list[tuple[int, Piece]] = []
        self._dropped = 0
        self._finished: Finished | None = finished
        self.digest = digest
        self.kept = kept
        self._lease = lease
        self._readers: set[Reader] = set()
        self._timer: asyncio.TimerHandle | None = None

    def reader(self, seen: Sequence[Seen] = (), had: Had = lambda number, text: None) -> Reader:
        """Somebody who reads all but what was `seen`, of which `had` is told the text, choice by choice.

        Raises InvalidParameter if that is of another shape.
        """
        check_shape(seen, len(self.choices))
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        choices = [Choice(text=text, shown=len(text)) for text in self._echo]
        reader = Reader(self, choices, tuple(seen) or (Seen(),) * len(choices), had)
        self._readers.add(reader)
        return reader

    def since(self, count: int) -> list[tuple[int, Piece]]:
        """All tokens but the first `count`, with the numbers of their choices."""
        for number, run in enumerate(self.runs):
            for piece in run.take():
                choice = self.choices[number * self._n + piece.choice]
                choice.tokens += piece.token is not None
                choice.finish = piece.finish or choice.finish
                self._tokens.append((number * self._n + piece.choice, piece))
        found = self._tokens[count - self._dropped :]
        if not self.kept:
            self._dropped += len(self._tokens)
            self._tokens.clear()
        return found

    def usage(self) -> Usage:
        return Usage(
            prompt=sum(len(run.request.prompt) for run in self.runs),
            completion=sum(choice.tokens for choice in self.choices),
            cached=sum(run.progress.cached for run in self.runs),
        )

    def leave(self, reader: Reader, error: BaseException | None) -> None:
        """A reader is gone. Without others the job ends: at once, or after its lease if it still runs."""
        self._readers.discard(reader)
        if self._readers:
            return
        if self._lease and error is None and not all(run.ended for run in self.runs):
            self._timer = asyncio.get_running_loop().call_later(self._lease, self.end, None)
        else:
            self.end(error)

    def end(self, error: BaseException | None) -> None:
        """The end, however it came about: what still runs is dropped everywhere."""
        for run in self.runs:
            run.close()
        finished, self._finished = self._finished, None
        if finished is not None:
            finished(self, error)


class Reader:
    """One client of a job; `choices` is what it has been given."""

    def __init__(self, job: Job, choices: list[Choice], seen: tuple[Seen, ...], had: Had) -> None:
        self.job = job
        self.choices = choices
        self.begun = {number for number, one in enumerate(seen) if one.tokens or one.ended}
        self._seen = seen
        self._had = had
        self._taken = 0

    async def next(self, patience: float | None = None) -> Update | None:
        """What has come since the last call; [] at the end, None if nothing came for `patience` seconds.

        Raises what ended a run, which ends them all, or DeadlineExceeded.
        """
        job = self.job
        give_up = None if patience is None else time.monotonic() + patience
        while True:
            now = time.monotonic()
            # First of all: of a client that reads slowly there is always something more to be sent.
            if now >= job.deadline and not all(run.ended for run in job.runs):
                raise DeadlineExceeded("the request took longer than it may; ask for fewer tokens")
            update = self._take()
            if update:
                return update
            for run in job.runs:
                if run.error is not None:
                    raise run.error
            if all(run.ended for run in job.runs):
                return []
            if give_up is not None and now >= give_up:
                return None
            job.changed.clear()
            wait = min(job.deadline, give_up or job.deadline) - now
            try:
                async with asyncio.timeout(wait):
                    await job.changed.wait()
            except TimeoutError:
                continue

    def given(self, number: int, pieces: Sequence[Piece]) -> None:
        """Count what the client is sent of a choice; until then its position is before it."""
        choice = self.choices[number]
        self.begun.add(number)
        for piece in pieces:
            choice.shown += len(piece.text)
            choice.tokens += piece.token is not None
            if piece.finish:
                choice.finish, choice.stop_reason = piece.finish, piece.stop_reason

    def close(self, error: BaseException | None = None) -> None:
        """Reads no more."""
        self.job.leave(self, error)

    def _take(self) -> Update:
        found = self.job.since(self._taken)
        self._taken += len(found)
        by_choice: dict[int, list[Piece]] = {}
        for number, piece in found:
            new = unseen(piece, self._seen[number])
            if new is not piece:
                self._had(number, piece.text)
            if new is not None:
                by_choice.setdefault(number, []).append(new)
                continue
            self.given(number, [piece])
        return sorted(by_choice.items())
