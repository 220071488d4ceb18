"""A whole node dies, with all that runs there: two Ray nodes on this machine, in processes of their own."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest

from cluster.chaos.run import run
from cluster.chaos.scenario import load
from cluster.chaos.victims import daemon
from cluster.control_client import ControlClient
from tests.cluster.scripts import script
from tests.cluster.two_nodes import AWAY, ROOM, TOKEN


@pytest.fixture
def control(tiny_model: Path, full: bool) -> Iterator[ControlClient]:
    """Of a cluster that has most of its decode instances on the second node."""
    if not full:
        pytest.skip("a cluster of its own of two nodes: only with --full")
    with (
        script("tests.cluster.two_nodes", str(tiny_model)) as (_, port),
        ControlClient(f"127.0.0.1:{port}", TOKEN, timeout=10.0) as client,
    ):
        yield client


def by_node(control: ControlClient) -> dict[int, list[str]]:
    """The decode instances below each Ray daemon."""
    found: dict[int, list[str]] = {}
    for one in control.status().instances:
        if one.role == "decode":
            found.setdefault(daemon(one.pid).pid, []).append(one.name)
    return found


def test_the_instances_of_a_node_die_at_once_and_every_answer_is_exact(control: ControlClient) -> None:
    before = by_node(control)
    assert sorted(map(len, before.values())) == [ROOM - AWAY, AWAY]
    doomed = set(max(before.values(), key=len))
    said: list[str] = []
    verdict = asyncio.run(run(load("kill-node"), control, said.append))
    assert verdict.failures == ()
    assert verdict.faults == 1
    assert verdict.hit > 0
    assert verdict.exact == verdict.sent
    assert [len(names) for names in by_node(control).values()] == [ROOM]
    after = {name for names in by_node(control).values() for name in names}
    assert not doomed & after
    died = {event.subject for event in control.events() if event.kind in ("died", "hung")}
    assert doomed <= died
