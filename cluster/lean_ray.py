"""A Ray of our own without three processes that a cluster on one machine has no use for.

Its autoscaler's monitor has no machines to ask for, its log monitor nobody to send logs to, and its
dashboard's server is started without a dashboard. They would take memory, and their share of a start, in
which cores have all to do. Nothing public leaves them out; where Ray has changed inside they are started as
ever.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from inspect import signature
from typing import Any

LEFT_OUT = {"no_monitor": True, "include_log_monitor": False}


@contextmanager
def lean() -> Iterator[None]:
    """Around `ray.init`, when it starts a Ray."""
    changed = list(_changes())
    before = [(owner, name, getattr(owner, name)) for owner, name, _ in changed]
    try:
        for owner, name, value in changed:
            setattr(owner, name, value)
        yield
    finally:
        for owner, name, value in before:
            setattr(owner, name, value)


def _changes() -> Iterator[tuple[Any, str, Any]]:
    """What is another in Ray meanwhile: owner, name, value."""
    try:
        parameter = importlib.import_module("ray._private.parameter")
        node = importlib.import_module("ray._private.node")
        known = signature(parameter.RayParams).parameters
        server = node.Node.start_api_server
    except (ImportError, AttributeError, ValueError):
        return
    if known.keys() >= LEFT_OUT.keys():
        yield parameter, "RayParams", partial(parameter.RayParams, **LEFT_OUT)
    if list(signature(server).parameters) == ["self", "include_dashboard", "raise_on_failure"]:
        yield node.Node, "start_api_server", _no_server


def _no_server(self: Any, *, include_dashboard: bool | None, raise_on_failure: bool) -> None:
    self._webui_url = None
