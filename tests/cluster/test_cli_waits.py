"""Verbs that wait go on while the controller is away, and while a new one has not found what there is."""

from __future__ import annotations

from collections.abc import Iterator
from typing import cast

import pytest

from cluster import control_pb2 as pb
from cluster.cli.failures import Exit, Failure
from cluster.cli.restart import watch
from cluster.control_client import ControlClient
from tests.cluster.cli_controller import Controller, run

POOLS = [pb.Pool(name="prefill", target=1, ready=1), pb.Pool(name="decode", target=2, ready=1)]
AWAY = None
NEW = pb.ClusterStatus(controller_pid=10)
ADOPTING = pb.ClusterStatus(controller_pid=10, pools=POOLS)


@pytest.mark.parametrize(
    "verb",
    [
        ["scale", "decode", "--replicas", "4", "--wait"],
        ["restart", "decode"],
        ["drain", "decode-0", "--wait"],
        ["role", "decode-0", "decode", "--wait"],
    ],
    ids=" ".join,
)
@pytest.mark.parametrize(
    "said", [[AWAY], [NEW, NEW], [AWAY, AWAY, NEW, ADOPTING]], ids=["away", "new", "from one to the other"]
)
def test_a_wait_outlasts_a_controller_that_is_started_again(
    controller: Controller, verb: list[str], said: list[pb.ClusterStatus | None]
) -> None:
    controller.replaced, controller.interlude = ["decode-7"], list(said)
    told = run(*verb)
    assert told.exit_code == 0, told.output
    assert not controller.interlude, "it ended before the cluster was seen whole"


def test_a_wait_for_a_controller_that_stays_away_ends_with_5(controller: Controller) -> None:
    controller.interlude = [AWAY] * 1000
    told = run("scale", "decode", "--replicas", "4", "--wait", "--timeout", "10ms")
    assert told.exit_code == Exit.TIMEOUT
    assert "decode has 0 of 4 instances ready" in told.stderr


def test_a_cluster_that_is_gone_is_not_waited_for_to_the_end(
    controller: Controller, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cluster.cli.waiting.AWAY", 0.05)
    controller.interlude = [AWAY] * 1000
    told = run("scale", "decode", "--replicas", "4", "--wait", "--timeout", "10m")
    assert told.exit_code == Exit.NOT_FOUND
    assert "no local cluster is running" in told.stderr
    assert len(controller.interlude) > 900


def test_an_instance_that_ends_while_the_same_controller_runs_is_gone(controller: Controller) -> None:
    told = run("drain", "decode-9", "--wait")
    assert told.exit_code == Exit.FAILED
    assert "decode-9 ended meanwhile" in told.stderr


class Successor:
    """A client that first sees one controller, which is not done, and then another, which has given up."""

    def __init__(self) -> None:
        self.controllers = iter((9, 10, 10))

    def status(self) -> pb.ClusterStatus:
        pools = [pb.Pool(name="decode", target=2, ready=1)]
        return pb.ClusterStatus(controller_pid=next(self.controllers), pools=pools)

    def events(self, *, after: int) -> Iterator[pb.Event]:
        given_up = pb.Event(id=3, kind="unreplaced", subject="decode-7", reason="decode-7 would not start")
        return iter([given_up] if after < given_up.id else [])


def test_what_a_new_controller_gives_up_is_heard_though_its_events_count_anew() -> None:
    with pytest.raises(Failure, match="decode-7 would not start"):
        watch(cast(ControlClient, Successor()), ["decode-7"], 40, 30.0, lambda done, total: None)
