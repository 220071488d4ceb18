"""What verbs that wait see of a cluster, whose controller may be started again meanwhile."""

from __future__ import annotations

from cluster import control_pb2 as pb
from cluster.control_client import ControlClient
from engine.errors import Unreachable


def look(client: ControlClient) -> pb.ClusterStatus:
    """The status; without pools while the controller is away, or has not yet found what there is."""
    try:
        return client.status()
    except Unreachable:
        return pb.ClusterStatus()
