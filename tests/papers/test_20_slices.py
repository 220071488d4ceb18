"""Slice-level scheduling: batches whose time is known, the best cuts, spread evenly, nobody starved."""

from __future__ import annotations

import itertools
import statistics
import sys
from random import Random

import pytest

import decode_pool.slices as slices
from decode_pool.slice_batches import SliceBatches
from decode_pool.slices import Job, SliceTime, batches, fit, interval, spread
from engine.cost_model import Batch
from engine.sequence import Phase
from simulator.papers import slices as experiment
from simulator.papers.arms import OPT_13B
from tests.engine.mutants import mutate
from tests.engine.toy import Bench, alone, prompt, request

TIME = SliceTime((1e-5, 1e-4, 2e-5, 5e-3), (2e-7, 1e-4, 1e-6, 0.02))


def cost(groups: list[list[Job]], steps: int) -> float:
    return sum(
        TIME.seconds(len(group), max(job.length for job in group), steps, sum(job.fresh for job in group))
        for group in groups
    )


def exhaustive(jobs: list[Job], steps: int, slots: int, most: int) -> float:
    """The least over all ways to cut the jobs, sorted by length, into runs."""
    ordered = sorted(jobs, key=lambda job: job.length)
    best = float("inf")
    for cuts in itertools.product((False, True), repeat=len(jobs) - 1):
        groups = [[ordered[0]]]
        for job, cut in zip(ordered[1:], cuts, strict=True):
            if cut:
                groups.append([])
            groups[-1].append(job)
        if all(
            len(group) == 1 or (len(group) <= most and len(group) * (group[-1].length + steps) <= slots)
            for group in groups
        ):
            best = min(best, cost(groups, steps))
    return best


def check_batches(instances: int, most_jobs: int = 9) -> None:
    rng = Random(1)
    for _ in range(instances):
        jobs = [Job(rng.randint(1, 1000), rng.random() < 0.7) for _ in range(rng.randint(1, most_jobs))]
        steps, slots, most = rng.choice((8, 128)), rng.randint(500, 6000), rng.randint(1, 9)
        formed = batches(jobs, TIME, steps, slots, most)
        assert sorted(itertools.chain(*formed)) == list(range(len(jobs)))
        groups = [[jobs[index] for index in group] for group in formed]
        for group in groups:
            fits = len(group) * (max(job.length for job in group) + steps) <= slots and len(group) <= most
            assert fits or len(group) == 1, "the memory rule"
        assert cost(groups, steps) == pytest.approx(exhaustive(jobs, steps, slots, most))


def test_batches_are_the_best_of_all_ways_to_cut_and_fit_the_memory(full: bool) -> None:
    check_batches(*((1000, 12) if full else (120, 9)))


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("time.seconds(count, longest, steps, fresh)",
         "time.seconds(count, sum(jobs[i].length for i in order[first - 1 : last]) // count, steps, fresh)"),
        ("time.seconds(count, longest, steps, fresh)", "time.seconds(count, longest, steps, 0)"),
        ("count * (longest + steps) > slots", "count * longest > slots"),
        ("key=lambda index: (jobs[index].length, index)", "key=lambda index: index"),
    ],
    ids=["the mean for the longest", "reading prompts for nothing", "no room for the slice", "unsorted"],
)  # fmt: skip
def test_a_wrong_cut_is_found(monkeypatch: pytest.MonkeyPatch, old: str, new: str) -> None:
    holder = sys.modules[__name__]
    monkeypatch.setattr(holder, "batches", batches)
    source = type("Owner", (), {"__module__": slices.__name__, "batches": staticmethod(batches)})
    mutate(monkeypatch, source, "batches", old, new)
    monkeypatch.setattr(holder, "batches", source.__dict__["batches"])
    with pytest.raises((AssertionError, IndexError)):
        check_batches(60)


def test_the_estimate_is_within_a_tenth_where_it_was_not_fitted() -> None:
    """Slices of batches of unlike lengths, step by step by the cost model, against one formula."""
    rng, errors = Random(2), []
    estimator = experiment.TIME
    for _ in range(50):
        lengths = [rng.randint(20, 900) for _ in range(rng.randint(1, 14))]
        longest, count = max(lengths), len(lengths)
        seconds = OPT_13B.seconds(Batch(tuple((longest, 0) for _ in lengths)))
        seconds += sum(OPT_13B.seconds(Batch((), count, count * (longest + i + 1))) for i in range(128))
        errors.append(abs(estimator.seconds(count, longest, 128) / seconds - 1))
    assert statistics.fmean(errors) <= 0.10


def test_what_was_generated_by_the_formula_is_fitted_exactly() -> None:
    rng = Random(3)
    points = [(rng.randint(1, 40), rng.randint(1, 2000)) for _ in range(12)]
    p, d = TIME.prefill, TIME.decode

    def term(c: tuple[float, float, float, float], n: int, length: int) -> float:
        return c[0] * n * length + c[1] * n + c[2] * length + c[3]

    found = fit([(n, l, term(p, n, l)) for n, l in points], [(n, l, term(d, n, l)) for n, l in points])  # noqa: E741
    assert found.prefill == pytest.approx(p, rel=1e-6) and found.decode == pytest.approx(d, rel=1e-6)
    by_steps = term(p, 7, 300) + sum(term(d, 7, length) for length in range(301, 301 + 50))
    assert TIME.seconds(7, 300, 50) == pytest.approx(by_steps)


def test_points_that_do_not_tell_the_terms_apart_are_refused() -> None:
    with pytest.raises(ValueError, match="measure other"):
        fit([(1, 10, 0.1)] * 5, [(1, 10, 0.1)] * 5)


def makespan(times: list[float], places: list[int], machines: int) -> float:
    loads = [0.0] * machines
    for seconds, place in zip(times, places, strict=True):
        loads[place] += seconds
    return max(loads)


def test_spreading_is_within_its_bound_of_the_best(full: bool) -> None:
    """Longest first to the least loaded: at most 4/3 - 1/(3m) of the best, by exhaustive search."""
    rng = Random(4)
    for _ in range(300 if full else 60):
        machines = rng.randint(2, 3)
        times = [rng.uniform(0.1, 9.0) for _ in range(rng.randint(1, 7))]
        best = min(
            makespan(times, list(places), machines)
            for places in itertools.product(range(machines), repeat=len(times))
        )
        mine = makespan(times, spread(times, [0.0] * machines), machines)
        assert mine <= (4 / 3 - 1 / (3 * machines)) * best + 1e-9


def test_work_goes_where_least_is_already() -> None:
    assert spread([1.0, 5.0, 2.0], [10.0, 0.0, 4.0]) == [1, 1, 2]


def test_the_interval_follows_the_least_loaded() -> None:
    assert interval([40.0, 10.0, 90.0]) == 5.0
    assert interval([40.0, 2.0]) == interval([]) == 3.0
    assert interval([40.0, 10.0], share=1.0, least=0.0) == 10.0


@pytest.mark.parametrize("steps", [1, 3, 50])
def test_tokens_are_the_same_whatever_the_slice(steps: int) -> None:
    rng = Random(steps)
    bench = Bench(total=40, policy=SliceBatches(TIME, 160, steps=steps, budget=9, least=2.0))
    requests = [request(f"r{i}", prompt(rng.randint(1, 30), i), rng.randint(1, 20), n=rng.choice((1, 1, 2)))
                for i in range(25)]  # fmt: skip
    for one in requests:
        bench.core.submit(one)
        bench.step()
    bench.drain()
    for one in requests:
        for choice in range(one.sampling.n):
            assert bench.output(one.id, choice) == alone(one, choice)


def rounds(bench: Bench, names: list[str]) -> int:
    """The most slices that anybody had while another that was there waited for its next."""
    steps, behind = dict.fromkeys(names, 0), 0
    for plan in bench.runner.plans:
        for work in plan.works:
            steps[work.request_id] += 1
        behind = max(behind, max(steps.values()) - min(steps.values()))
    return behind


def test_everybody_has_a_slice_before_anybody_has_two_more() -> None:
    """Short and long jobs, too many for one batch: nobody is more than two slices behind."""
    bench = Bench(total=400, policy=SliceBatches(TIME, 120, steps=4, most=3, budget=64, least=0.0))
    names = [f"r{i}" for i in range(9)]
    for i, name in enumerate(names):
        bench.core.submit(request(name, prompt(3 + 4 * i, i), 40))
    for _ in range(60):
        bench.step()
    assert rounds(bench, names) <= 2 * 4


def test_batches_formed_again_at_every_step_would_starve_somebody(monkeypatch: pytest.MonkeyPatch) -> None:
    mutate(
        monkeypatch, SliceBatches, "_form", "planned = {key for", "self._queue.clear(); planned = {key for"
    )
    with pytest.raises(AssertionError):
        test_everybody_has_a_slice_before_anybody_has_two_more()


def test_an_answer_that_ends_within_a_slice_leaves_at_once() -> None:
    bench = Bench(policy=SliceBatches(TIME, 200, steps=50))
    bench.core.submit(request("short", prompt(4), 3))
    bench.core.submit(request("long", prompt(4), 30))
    for _ in range(4):
        bench.step()
    assert bench.finish("short") and not bench.core.sequences("short")
    assert bench.core.sequences("long")[0].phase is Phase.DECODE


def test_what_slices_took_is_counted_beside_what_was_predicted() -> None:
    """Steps take a second each; the last slice is not served whole."""
    policy = SliceBatches(TIME, 200, steps=5)
    bench = Bench(policy=policy)
    bench.core.submit(request("one", prompt(4), 21))
    bench.drain()
    predicted = sum(TIME.seconds(1, 4 + 5 * number, 5, int(number == 0)) for number in range(4))
    assert policy.served == (4, 20.0, pytest.approx(predicted))


def test_slices_beat_what_the_paper_compares_with(full: bool) -> None:
    """And not what it doesn't: iteration-level batches on blocks waste nothing that slices could save."""
    requests, instances = (2000, 8) if full else (100, 1)
    arrivals = experiment.traffic(30.0 * instances / 8, requests, 1)
    got = {arm: experiment.throughput(experiment.run(arm, arrivals, instances=instances))
           for arm in experiment.ARMS}  # fmt: skip
    assert got["slices"] >= 2.0 * got["static"]
    assert got["slices"] >= 1.2 * got["reserving"]
    assert got["slices"] >= 0.5 * got["paged"]


def test_a_shorter_slice_is_better_where_its_end_costs_nothing() -> None:
    """Here the KV is kept between slices."""
    arrivals = experiment.traffic(4.0, 60, 1)
    got = [experiment.throughput(experiment.run("slices", arrivals, instances=1, steps=steps))
           for steps in (32, 128, 512)]  # fmt: skip
    assert got == sorted(got, reverse=True)


def test_where_the_kv_is_computed_again_a_slice_in_between_is_best(full: bool) -> None:
    """As in the paper, whose slices have 128 steps: shorter ones read prompts too often, longer ones run
    batches that are no longer full."""
    steps = (32, 64, 128, 256, 512, 1024) if full else (16, 64, 1024)
    arrivals = experiment.traffic(4.0, 120, 1)
    got = [experiment.throughput(experiment.dropped(arrivals, one)) for one in steps]
    assert max(got) not in (got[0], got[-1])


def test_placing_by_estimated_time_evens_out_when_instances_end(full: bool) -> None:
    """Half of round robin's spread, where one request in as many as there are instances is long."""
    count, instances = (1200, 8) if full else (100, 4)
    arrivals = experiment.uneven(count, instances)
    even, turns = (
        experiment.imbalance(experiment.run("slices", arrivals, instances=instances, placing=placing))
        for placing in ("max-min", "round robin")
    )
    assert even <= 0.5 * turns
