"""What came of a live migration, for whoever asked for it."""

from __future__ import annotations

from dataclasses import dataclass

COMMITTED = "committed"


@dataclass(frozen=True, slots=True)
class Moved:
    """`outcome` is "committed", or "aborted: " and why: then the request goes on at its source.

    `stages` counts the copies that were made while the request ran, and the last one, for which it
    paused. `blocks` and `bytes` are what was sent, `tokens` the KV positions that changed hands.
    `downtime_seconds` is the pause as the source sees it: from its last token to the news that the
    destination runs the request (or that it stays). `seconds` is all of it.
    """

    request_id: str
    source: str
    destination: str
    reason: str
    outcome: str
    stages: int = 0
    blocks: int = 0
    bytes: int = 0
    tokens: int = 0
    downtime_seconds: float = 0.0
    seconds: float = 0.0

    @property
    def committed(self) -> bool:
        return self.outcome == COMMITTED
