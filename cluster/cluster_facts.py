"""What a gateway knows of the cluster: the controller's last status, at most a second old."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Coroutine
from typing import Any

from cluster import control_pb2 as pb
from cluster.settled import settled

logger = logging.getLogger("tandem.gateway")

MAX_AGE = 1.0
"""Seconds for which a status is as good as new."""

STALE = 5.0
"""Seconds after which a status says nothing about whether the instances are alive."""


class ClusterFacts:
    """The status, fetched when somebody asks. While the controller is away the last one stays."""

    def __init__(self, fetch: Callable[[], Coroutine[Any, Any, pb.ClusterStatus]]) -> None:
        self._fetch = fetch
        self._lock = asyncio.Lock()
        self._tried = float("-inf")
        self._fetched = float("-inf")
        self.status = pb.ClusterStatus()

    async def refresh(self) -> pb.ClusterStatus:
        """The status. Never raises: see `fresh`."""
        async with self._lock:
            if time.monotonic() - self._tried > MAX_AGE:
                try:
                    self.status = await settled(self._fetch())
                    self._fetched = time.monotonic()
                except Exception as error:
                    logger.debug("the controller does not tell its status: %s", error)
                self._tried = time.monotonic()
        return self.status

    @property
    def fresh(self) -> bool:
        """Whether the controller answered lately."""
        return time.monotonic() - self._fetched < STALE

    @property
    def alive(self) -> bool:
        """Whether an instance works, as far as the controller knows."""
        return self.fresh and any(instance.state == "ready" for instance in self.status.instances)

    @property
    def kv_blocks(self) -> tuple[int, int] | None:
        """KV blocks of the smallest instance and tokens of a block; None before the first status."""
        pools = [i.status for i in self.status.instances if i.state == "ready" and i.status.blocks_total]
        if not pools:
            return None
        smallest = min(pools, key=lambda pool: pool.blocks_total * pool.block_size)
        return smallest.blocks_total, smallest.block_size
