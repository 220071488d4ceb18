"""Scenarios against a real cluster: nothing is lost, repeated or changed."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from cluster.chaos.run import run
from cluster.chaos.scenario import Scenario, load
from cluster.chaos.verdict import Verdict
from tests.cluster.conftest import Cluster

LONGER = [
    "kill-decode",
    "kill-prefill",
    "hang-decode",
    "hang-step",
    "pause-decode",
    "kill-controller",
    "kill-gateway",
    "bad-links",
    "migrate-storm",
    "drain-and-turn",
    "kill-in-copy",
    "disk-full",
    "clock-jump",
    "memory-pressure",
    "restart-all",
    "restart-controller",
    "scale",
    "apply",
    "rolling-restart",
    "mixed",
]

STORMS = {"kill-storm": 4, "kill-storm-controller": 4, "kill-storm-gateway": 3}
"""How often each of a storm's faults is carried out here, where all of it would take minutes."""


def passes(cluster: Cluster, scenario: Scenario, **expect: object) -> Verdict:
    # How long streams stand still is for the command to measure: here many things share the machine.
    patient = {"resume": 0.0, "pause": 0.0} | expect
    scenario = scenario.model_copy(update={"expect": scenario.expect.model_copy(update=patient)})
    verdict = asyncio.run(run(scenario, cluster.control, lambda text: None))
    assert verdict.failures == (), verdict
    assert verdict.faults > 0
    assert verdict.exact == verdict.sent
    assert bool(verdict.compared) == bool(scenario.load.logprobs)
    return verdict


def with_faults(name: str, **fields: Any) -> Scenario:
    """A shipped scenario, of whose faults each has these fields."""
    scenario = load(name)
    faults = tuple(fault.model_copy(update=fields) for fault in scenario.faults)
    return scenario.model_copy(update={"faults": faults})


def test_a_decode_instance_is_killed_while_requests_are_moved(cluster: Cluster) -> None:
    passes(cluster, load("tiny"))


@pytest.mark.parametrize("name", LONGER)
def test_each_row_of_the_table(cluster: Cluster, full: bool, name: str) -> None:
    if not full:
        pytest.skip("takes up to a minute: run with --full")
    before = cluster.last_event()
    passes(cluster, load(name))
    if name == "hang-step":
        assert "step" in cluster.event("hung", before, "decode").reason


@pytest.mark.parametrize("name", STORMS)
def test_the_beginning_of_each_storm(cluster: Cluster, full: bool, name: str) -> None:
    if not full:
        pytest.skip("takes up to a minute: run with --full")
    count = STORMS[name]
    verdict = passes(cluster, with_faults(name, count=count), hit=count)
    assert set(verdict.injected.values()) == {count}


def test_a_step_that_hangs_for_less_than_its_limit_ends_nobody(cluster: Cluster, full: bool) -> None:
    if not full:
        pytest.skip("takes a quarter of a minute: run with --full")
    before = {one.name for one in cluster.status().instances}
    verdict = passes(cluster, with_faults("hang-step", lasting=1.0), hit=0)
    assert (verdict.hit, verdict.recovered) == (0, 0)
    assert {one.name for one in cluster.status().instances} == before
