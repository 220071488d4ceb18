"""InstanceStatus as a message and back."""

from __future__ import annotations

from dataclasses import fields

from cluster import control_pb2 as pb
from engine.status import InstanceStatus

_NAMES = tuple(field.name for field in fields(InstanceStatus))


def status_message(status: InstanceStatus) -> pb.InstanceStatus:
    """Every field, under its own name."""
    return pb.InstanceStatus(**{name: getattr(status, name) for name in _NAMES})


def status_from(message: pb.InstanceStatus) -> InstanceStatus:
    return InstanceStatus(**{name: getattr(message, name) for name in _NAMES})
