"""The gateways that the controller knows: one is listed while its beats come."""

from __future__ import annotations

import time

from cluster import control_pb2 as pb
from cluster.events import Events

SILENCE = 5.0
"""Seconds without a beat after which a gateway is taken off the list."""


class Gateways:
    """By name, with the time of the last beat. Comings and goings are events."""

    def __init__(self, events: Events) -> None:
        self._events = events
        self._known: dict[str, tuple[float, pb.Gateway]] = {}

    def beat(self, gateway: pb.Gateway) -> None:
        """One is there, and tells of itself."""
        if gateway.name not in self._known:
            self._events.add("joined", gateway.name, f"gateway at {gateway.url}")
        self._known[gateway.name] = (time.monotonic(), gateway)

    def forget_silent(self) -> None:
        """Take those off the list whose beats have stopped."""
        silent = time.monotonic() - SILENCE
        for name in [name for name, (heard, _) in self._known.items() if heard < silent]:
            del self._known[name]
            self._events.add("left", name, "the gateway's beats have stopped")

    def listed(self) -> list[pb.Gateway]:
        return [gateway for _, gateway in self._known.values()]
