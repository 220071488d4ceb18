"""DistServe: apart is better where objectives bind, and worse where the link does."""

from __future__ import annotations

from random import Random

import pytest

from engine.cost_model import LinearCost
from prefill_pool.chunked_prefill import ChunkedPrefill
from simulator.network import LinkSettings, Network
from simulator.papers import distserve
from simulator.papers.arms import one
from simulator.setup import fcfs
from simulator.simulate import simulate
from simulator.workload.arrivals import Arrival
from simulator.workload.generators import fixed, make, poisson
from tests.engine.mutants import mutate


@pytest.mark.parametrize("load", [0.3, 0.8])
def test_prefill_alone_waits_as_a_queue_with_one_server_does(load: float, full: bool) -> None:
    """M/D/1: a prompt takes D, and TTFT = D + R·D² / (2 (1 - R·D)) on the average."""
    time = 0.072
    rate = load / time
    count = 200_000 if full else 1500
    arrivals = make(poisson(rate, Random(7)), fixed(512), fixed(1), count)
    cluster = one(fcfs(lambda: ChunkedPrefill(512, 16)), arrivals, LinearCost(time, 0.0, 0.0))
    mean = sum(record.ttft for record in cluster.records.records.values()) / count
    expected = time + rate * time**2 / (2 * (1 - load))
    # Placement takes two messages of 0.1 ms on the way here.
    assert mean - 2e-4 == pytest.approx(expected, rel=0.02 if full else 0.2)


def goodput(arm: str, rate: float, *, tpot: float = 0.04, links: LinkSettings = distserve.QUICK) -> float:
    """Share of requests that meet both objectives at so many a second and GPU."""
    report = distserve.measure(arm, rate, 120, 1, ttft=0.4, tpot=tpot, links=links)
    return float(report["slo"]["attainment"])


def test_apart_holds_a_rate_at_which_together_has_failed() -> None:
    """6 requests a second and GPU with 2P1D; together fails at two thirds of it. Published: 2.1 times."""
    assert goodput("2P1D", 6.0) >= 0.9
    assert goodput("together", 6.0 / 1.5) < 0.9


def test_a_slow_link_makes_apart_worse_than_together() -> None:
    assert goodput("together", 2.5, links=distserve.SLOW) >= 0.9
    assert goodput("2P1D", 2.5, links=distserve.SLOW) < 0.9


def test_a_link_without_contention_would_hide_that(monkeypatch: pytest.MonkeyPatch) -> None:
    mutate(monkeypatch, Network, "send", "self._free[end] = start + seconds", "self._free[end] = 0.0")
    assert goodput("2P1D", 2.5, links=distserve.SLOW) >= 0.9


def test_with_a_loose_objective_for_decode_together_is_as_good() -> None:
    assert goodput("together", 6.5, tpot=0.1) >= 0.9


def test_attainment_is_joint() -> None:
    """Where prompts meet their objective and decodes don't, or the other way round, nobody has met both."""
    report = distserve.measure("together", 4.5, 120, 1, ttft=0.4, tpot=0.04)
    slo = report["slo"]
    assert slo["attainment"] <= min(slo["ttft_attainment"], slo["tpot_attainment"])
    assert slo["tpot_attainment"] < slo["ttft_attainment"]


def test_an_answer_of_one_token_never_reaches_the_decode_pool() -> None:
    cluster = simulate(distserve.setup("1P1D"), [Arrival(0.0, 512, 1), Arrival(0.1, 512, 2)])
    assert cluster.handoffs == 1
    assert cluster.members["decode-0"].instance.status().output_tokens == 1


def test_the_full_sweep(full: bool) -> None:
    if not full:
        pytest.skip("bisects rates for minutes: --full")
    both = {arm: distserve.goodput(arm, 600, 7) for arm in ("together", "chunked", "2P1D")}
    assert both["2P1D"] >= 1.5 * both["together"] and both["2P1D"] > both["chunked"]
