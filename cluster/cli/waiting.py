"""What verbs that wait see of a cluster, whose controller may be started again meanwhile."""

from __future__ import annotations

import time

from cluster import control_pb2 as pb
from cluster.control_client import ControlClient
from engine.errors import Unreachable

AWAY = 60.0
"""Seconds that a controller may be away before it is taken for gone: another starts in a third of it."""


class Watch:
    """Looks again and again."""

    def __init__(self, client: ControlClient) -> None:
        self._client = client
        self._seen = time.monotonic()

    def look(self) -> pb.ClusterStatus:
        """The status; without pools while the controller is away, or has not yet found what there is.

        Raises Unreachable when nobody has answered for too long.
        """
        try:
            status = self._client.status()
        except Unreachable:
            if time.monotonic() - self._seen > AWAY:
                raise
            return pb.ClusterStatus()
        self._seen = time.monotonic()
        return status
