"""Workloads: lengths and arrivals as they are written, against the distributions that they name."""

from __future__ import annotations

import itertools
import math
import statistics
from pathlib import Path
from random import Random

import pytest

from cluster.bench.serve import Shape, plans_of
from cluster.bench.workload import closed, length, open_loop, replayed, variation
from engine.errors import ConfigError
from simulator.workload.arrivals import Arrival


def gaps(arrivals: tuple[Arrival, ...]) -> list[float]:
    times = [0.0, *(one.at for one in arrivals)]
    return [after - before for before, after in itertools.pairwise(times)]


@pytest.mark.parametrize(("cv", "tolerance"), [(1.0, 0.05), (3.0, 0.15), (0.5, 0.05)])
def test_gaps_have_the_mean_and_the_variation_that_were_asked_for(cv: float, tolerance: float) -> None:
    work = open_loop(8.0, cv, requests=20_000, prompt="16", output="16", seed=1)
    found = gaps(work.arrivals)
    assert statistics.fmean(found) == pytest.approx(1 / 8, rel=tolerance)
    assert statistics.stdev(found) / statistics.fmean(found) == pytest.approx(cv, rel=tolerance)


def test_poisson_gaps_are_exponential() -> None:
    found = gaps(open_loop(2.0, 1.0, requests=20_000, prompt="16", output="16", seed=2).arrivals)
    longer = sum(gap > 0.5 for gap in found) / len(found)
    assert longer == pytest.approx(math.exp(-1), abs=0.01)


def test_a_lognormal_length_has_its_median_its_sigma_and_its_end() -> None:
    draw = length("lognormal:192:0.7:1024", Random(3), param="prompt")
    found = [draw() for _ in range(20_000)]
    assert statistics.median(found) == pytest.approx(192, rel=0.03)
    below = [math.log(one) for one in found if one < 1024]
    assert max(found) == 1024
    # The cut tail, log(1024 / 192) = 2.4 sigma away, holds 0.8 % and narrows what is left a little.
    assert statistics.stdev(below) == pytest.approx(0.67, abs=0.03)


def test_a_uniform_length_takes_both_ends() -> None:
    draw = length("uniform:3:5", Random(4), param="prompt")
    assert {draw() for _ in range(100)} == {3, 4, 5}


@pytest.mark.parametrize(
    "text",
    [
        "",
        "0",
        "-3",
        "12.5",
        "uniform:5:3",
        "uniform:1",
        "lognormal:0:1",
        "lognormal:9",
        "normal:1:2",
        "lognormal:192:1000",
        "lognormal:192:300",
        "lognormal:inf:1",
        "lognormal:9:nan",
    ],
)
def test_a_length_that_is_none_is_refused_with_the_forms(text: str) -> None:
    with pytest.raises(ConfigError, match="uniform:64:256"):
        length(text, Random(0), param="prompt")


@pytest.mark.parametrize(("text", "cv"), [("poisson", 1.0), ("gamma:3", 3.0), ("gamma:0", 0.0)])
def test_arrivals_as_they_are_written(text: str, cv: float) -> None:
    assert variation(text) == cv


@pytest.mark.parametrize("text", ["poisson:2", "gamma", "gamma:-1", "gamma:1e-200", "gamma:inf", "bursty"])
def test_arrivals_that_are_none_are_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="gamma:CV"):
        variation(text)


def test_every_rate_asks_for_the_same_lengths_in_the_same_order() -> None:
    slow, fast = (
        open_loop(rate, 1.0, requests=40, prompt="uniform:1:99", output="uniform:1:9", seed=5)
        for rate in (1, 9)
    )
    assert [(a.prompt_tokens, a.output_tokens) for a in slow.arrivals] == [
        (a.prompt_tokens, a.output_tokens) for a in fast.arrivals
    ]
    assert slow.arrivals[-1].at > fast.arrivals[-1].at


def test_a_closed_workload_is_all_there_at_the_start() -> None:
    work = closed("batch", "batch 4", requests=9, at_once=4, prompt="7", output="3", seed=0)
    assert {one.at for one in work.arrivals} == {0.0}
    assert (len(work.arrivals), work.at_once) == (9, 4)


TRACE = [Arrival(10.0, 1600, 320, "a"), Arrival(12.0, 16, 8, "b"), Arrival(30.0, 8, 8, "a")]


def test_a_replay_is_faster_smaller_and_cut_as_asked() -> None:
    work = replayed(
        TRACE, Path("t.csv.gz"), speed=4, requests=2, shrink=16, longest_prompt=50, longest_output=8
    )
    assert work.arrivals == (Arrival(0.0, 50, 8, "a"), Arrival(0.5, 1, 1, "b"))
    assert (work.name, work.rate) == ("t", 2.0)


def test_a_replay_keeps_shared_prefixes_only_at_full_length() -> None:
    trace = [Arrival(0.0, 600, 8, prefix=(3, 4))]
    assert replayed(trace, Path("t")).arrivals[0].prefix == (3, 4)
    assert replayed(trace, Path("t"), shrink=2).arrivals[0].prefix == ()


def test_a_trace_without_requests_cannot_be_replayed() -> None:
    with pytest.raises(ConfigError, match="no requests"):
        replayed([], Path("t"))


def test_tests_as_they_are_written() -> None:
    made = [
        plan(0) for plan in plans_of(["single", "prefill=64,128", "batch=4", "rate=0.5"], Shape(requests=7))
    ]
    assert [(work.name, len(work.arrivals)) for work in made] == [
        ("single", 2), ("prefill 64", 4), ("prefill 128", 4), ("batch 4", 7), ("rate 0.5", 7)
    ]  # fmt: skip


@pytest.mark.parametrize(
    "text", ["double", "prefill", "batch=x", "batch=2.5", "rate=0", "single=3", "rate=1,"]
)
def test_a_test_that_is_none_is_refused_with_the_forms(text: str) -> None:
    with pytest.raises(ConfigError, match="prefill=512"):
        plans_of([text], Shape())


def test_repetitions_differ_in_their_arrivals_and_runs_do_not() -> None:
    plan, again = (plans_of(["rate=2"], Shape(seed=3))[0] for _ in range(2))
    assert plan(0) == again(0)
    assert plan(0) != plan(1)
