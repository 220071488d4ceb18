"""Scenarios against a real cluster: nothing is lost, repeated or changed."""

from __future__ import annotations

import asyncio

import pytest

from cluster.chaos.run import run
from cluster.chaos.scenario import load
from tests.cluster.conftest import Cluster

LONGER = [
    "kill-decode",
    "kill-prefill",
    "hang-decode",
    "pause-decode",
    "kill-controller",
    "kill-gateway",
    "bad-links",
    "migrate-storm",
    "drain-and-turn",
    "kill-in-copy",
    "disk-full",
    "clock-jump",
    "restart-all",
    "restart-controller",
    "scale",
    "apply",
]


def passes(cluster: Cluster, name: str) -> None:
    scenario = load(name)
    # How long streams stand still is for the command to measure: here many things share the machine.
    patient = scenario.model_copy(
        update={"expect": scenario.expect.model_copy(update={"resume": 0.0, "pause": 0.0})}
    )
    verdict = asyncio.run(run(patient, cluster.control, lambda text: None))
    assert verdict.failures == ()
    assert verdict.faults > 0
    assert verdict.exact == verdict.sent


def test_a_decode_instance_is_killed_while_requests_are_moved(cluster: Cluster) -> None:
    passes(cluster, "tiny")


@pytest.mark.parametrize("name", LONGER)
def test_each_row_of_the_table(cluster: Cluster, full: bool, name: str) -> None:
    if not full:
        pytest.skip("takes up to a minute: run with --full")
    passes(cluster, name)
