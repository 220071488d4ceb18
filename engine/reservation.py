"""Blocks that wait for what comes from another instance."""

from __future__ import annotations

from dataclasses import dataclass

from engine.request import Request


@dataclass(slots=True, eq=False)
class Reservation:
    """Blocks that wait for a request's KV. The first of `blocks` hold `cached` tokens of its prompt already.

    It holds one reference to each of its blocks until it is adopted or unreserved.
    """

    session: str
    request: Request
    blocks: list[int]
    cached: int = 0
