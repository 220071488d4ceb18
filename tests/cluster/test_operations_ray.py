"""Operators move, drain and turn instances of a real cluster while clients stream, who notice nothing."""

from __future__ import annotations

import time

import pytest

from cluster import control_pb2 as pb
from engine.errors import NotFound
from tests.cluster.conftest import Cluster
from tests.cluster.streams import Client, reference

TOKENS = 1500


def until_running(cluster: Cluster, name: str) -> str:
    """The instance that decodes a request."""
    end = time.monotonic() + 30
    while time.monotonic() < end:
        found = [one for one in cluster.control.requests(name) if one.phase == "decode"]
        if found:
            return found[0].instance
        time.sleep(0.02)
    raise AssertionError(f"{name} does not run")


def idle(one: pb.Instance) -> bool:
    return one.state == "ready" and not (one.status.running or one.status.waiting)


def other(cluster: Cluster, name: str) -> str:
    return next(one.name for one in cluster.ready("decode") if one.name != name)


def test_a_request_is_migrated_back_and_forth_and_its_text_stays_the_same(cluster: Cluster) -> None:
    whole = reference(cluster, TOKENS)
    with Client(cluster, "to-move", TOKENS) as client:
        first = until_running(cluster, "to-move")
        second = other(cluster, first)
        there = cluster.control.migrate("to-move", second)
        back = cluster.control.migrate("to-move", first)
        assert client.text() == whole
    for moved in (there, back):
        assert (moved.outcome, moved.cause) == ("committed", "operator"), moved
    assert [one.id for one in cluster.control.migrations("to-move")] == [there.id, back.id]


def test_a_drained_instance_is_emptied_under_load_and_no_client_notices(cluster: Cluster) -> None:
    whole = reference(cluster, TOKENS)
    clients = [Client(cluster, f"drained-{number}", TOKENS) for number in range(6)]
    try:
        for client in clients:
            until_running(cluster, client.name)
        victim = until_running(cluster, clients[0].name)
        cluster.control.drain(victim)
        cluster.until(lambda status: any(idle(one) for one in status.instances if one.name == victim))
        assert [client.text() for client in clients] == [whole] * 6
        assert all(client.recoveries == 0 for client in clients)
    finally:
        for client in clients:
            client.close()
        cluster.control.cordon(victim, on=False)
    assert "moved" in cluster.event("drained", 0, victim).reason


def test_an_instance_becomes_one_of_the_other_pool_with_the_same_process(cluster: Cluster) -> None:
    whole = reference(cluster, TOKENS)
    with Client(cluster, "turned", TOKENS) as client:
        name = until_running(cluster, "turned")
        pid = next(one.pid for one in cluster.ready("decode") if one.name == name)
        after = cluster.last_event()
        cluster.control.change_role(name, "prefill")
        cluster.event("role", after, name)
        assert client.text() == whole
    assert [(one.name, one.pid) for one in cluster.ready("prefill") if one.name == name] == [(name, pid)]
    assert reference(cluster, TOKENS) == whole
    cluster.control.change_role(name, "decode")
    cluster.event("role", after, name)
    cluster.until(lambda status: len(cluster.ready("decode")) == 2)
    assert reference(cluster, TOKENS) == whole


def test_a_request_that_is_over_cannot_be_moved(cluster: Cluster) -> None:
    to = cluster.ready("decode")[0].name
    with pytest.raises(NotFound, match="nobody"):
        cluster.control.migrate("nobody", to)
