"""Asking the home gateway who owns a request, without waiting for the answer in a thread that moves bytes."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor

from engine.sequence import Epoch

log = logging.getLogger(__name__)

Claim = Callable[[str, str, Epoch, Mapping[int, int]], bool]
"""(home, request id, epoch, output tokens of each choice) → granted. Blocks for a bounded time; raises when
the home cannot be asked."""

WORKERS = 4


class Claims:
    """A few threads that ask. A claim may be repeated: a home grants it to the same instance again."""

    def __init__(self, claim: Claim, name: str) -> None:
        self._claim = claim
        self._pool = ThreadPoolExecutor(WORKERS, thread_name_prefix=f"{name}-claims")

    def ask(
        self,
        home: str,
        request_id: str,
        epoch: Epoch,
        lengths: Mapping[int, int],
        done: Callable[[bool | None], None],
    ) -> None:
        """`done` gets the answer, None if there is none; it is called in a thread of the pool."""

        def run() -> None:
            try:
                granted: bool | None = self._claim(home, request_id, epoch, lengths)
            except Exception as error:
                log.warning("home %s does not answer a claim for %s: %s", home, request_id, error)
                granted = None
            done(granted)

        try:
            self._pool.submit(run)
        except RuntimeError:
            done(None)

    def close(self) -> None:
        """Answers that have not come are not waited for."""
        self._pool.shutdown(wait=False, cancel_futures=True)
