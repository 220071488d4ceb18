"""The simulator itself: it repeats to the byte, leaps change nothing, nothing is lost, links are shared."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from random import Random

import pytest

from decode_pool.continuous_batching import ContinuousBatching
from engine.cost_model import LinearCost
from engine.queues.fair import FairQueue
from engine.queues.fcfs import FCFSQueue
from engine.request import SLO
from engine.reserve_max import ReserveMax
from engine.service import Counters
from global_scheduler.autoscaling import AutoscalingSettings
from global_scheduler.forecast import HoltWinters
from global_scheduler.rescheduling import ReschedulingSettings
from global_scheduler.tape import Heard, Input
from prefill_pool.chunked_prefill import ChunkedPrefill
from simulator import records
from simulator.network import LinkSettings
from simulator.report import as_json, distribution, summarise
from simulator.setup import PoolSetup, Setup, fcfs
from simulator.simulate import simulate
from simulator.workload.arrivals import Arrival
from simulator.workload.generators import gamma, make, uniform

COST = LinearCost(0.003, 0.008, 0.09e-3, 6.5e-8)


def two_pools(
    *, blocks: int = 600, coasting: bool = True, bandwidth: float = 10e9, beat: float = 0.25
) -> Setup:
    return Setup(
        pools=(
            PoolSetup("prefill", 2, COST, blocks, fcfs(lambda: ChunkedPrefill(512, 16)), prefix_cache=True),
            PoolSetup("decode", 2, COST, blocks, fcfs(lambda: ContinuousBatching(512)), prefix_cache=True),
        ),
        links=LinkSettings(bandwidth=bandwidth, latency=0.0003),
        coasting=coasting,
        beat=beat,
    )


def requests(seed: int, count: int = 150, rate: float = 12.0) -> list[Arrival]:
    rng = Random(seed)
    return make(gamma(rate, 2.0, rng), uniform(20, 900, rng), uniform(1, 200, rng), count)


@pytest.mark.parametrize("blocks", [600, 120], ids=["ample", "tight"])
@pytest.mark.parametrize("seed", range(3))
def test_leaping_over_steps_gives_what_single_steps_give(seed: int, blocks: int) -> None:
    """Every time of every request, and every status on the way, is equal to the last bit."""
    heard: dict[bool, list[Input]] = {True: [], False: []}
    leaps, steps = (
        simulate(two_pools(coasting=c, blocks=blocks), requests(seed), tape=heard[c].append)
        for c in (True, False)
    )
    assert [*map(_said, heard[True])] == [*map(_said, heard[False])]
    assert leaps.records.records == steps.records.records
    assert as_json(summarise(leaps)) == as_json(summarise(steps))
    assert len(leaps.records.gaps) < len(steps.records.gaps), "nothing was leapt over"


def test_who_looks_before_the_end_sees_the_steps_of_a_leap_that_have_ended() -> None:
    leaps, steps = (
        simulate(two_pools(coasting=c), [Arrival(0.0, 20, 600)], until=4.0) for c in (True, False)
    )
    assert leaps.records.records == steps.records.records
    assert 100 < leaps.records.records["0"].tokens < 600
    for cluster in (leaps, steps):
        cluster.run()
    assert leaps.records.records == steps.records.records
    assert as_json(summarise(leaps)) == as_json(summarise(steps))


def _said(one: Input) -> Input:
    """How long the last step took is not known of leaps."""
    return Heard(one.taken, replace(one.status, step_seconds=0.0)) if isinstance(one, Heard) else one


def test_equal_seeds_give_equal_bytes() -> None:
    one, same, other = (as_json(summarise(simulate(two_pools(), requests(seed)))) for seed in (5, 5, 6))
    assert one == same != other


@pytest.mark.parametrize("blocks", [600, 80])
def test_every_token_comes_once_and_every_block_goes_back(blocks: int) -> None:
    arrivals = requests(9)
    cluster = simulate(two_pools(blocks=blocks), arrivals)
    assert cluster.records.duplicated == 0
    assert [record.tokens for record in cluster.records.records.values()] == [
        arrival.output_tokens for arrival in arrivals
    ]
    assert all(record.finished for record in cluster.records.records.values())
    for member in cluster.members.values():
        assert member.instance.status().blocks_used == member.instance.status().blocks_reserved == 0


def test_nobody_but_the_runner_knows_how_long_an_answer_becomes() -> None:
    """Where all ask for 4,000 tokens at most, the times differ from those where lengths are asked for
    exactly only as placement and admission see the bound."""
    arrivals = [Arrival(0.0, 100, 7), Arrival(5.0, 100, 9)]
    cluster = simulate(two_pools(), arrivals)
    assert [record.tokens for record in cluster.records.records.values()] == [7, 9]


@pytest.mark.parametrize("late", [14.85, 14.9])
def test_an_instance_stays_until_those_who_are_placed_there_have_come(late: float) -> None:
    """decode-1 is to go at 15 s, when two requests of decode-1 still wait for a long step of prefill-0."""
    cost = LinearCost(0.005, 0.005, 0.1e-3, 0.0)
    pools = (
        PoolSetup("prefill", 1, cost, 600, fcfs(lambda: ChunkedPrefill(2048, 16))),
        PoolSetup("decode", 2, cost, 600, fcfs(lambda: ContinuousBatching(2048))),
    )
    arrivals = [
        Arrival(1.0, 100, 3000),
        Arrival(14.0, 1900, 70),
        Arrival(late, 2000, 5),
        Arrival(14.9, 1000, 5),
    ]
    setup = Setup(
        pools,
        rescheduling=ReschedulingSettings(),
        reschedule_every=1.0,
        autoscaling={"decode": AutoscalingSettings(in_patience=10.0, warm_up=0.0)},
    )
    cluster = simulate(setup, arrivals)
    assert [(one.at, one.target) for one in cluster.scale_events] == [(15.0, 1)]
    assert [record.tokens for record in cluster.records.records.values()] == [3000, 70, 5, 5]
    assert [member.instance.name for member in cluster.retired] == ["decode-1"]


def scaled(**more: object) -> Setup:
    """Prefill takes a second for 1,000 tokens, and both pools follow their load."""
    slow = LinearCost(0.0, 0.001, 1e-3, 0.0)
    pools = (
        PoolSetup("prefill", 1, slow, 2000, fcfs(lambda: ChunkedPrefill(512, 16)), start_up=2.0),
        PoolSetup("decode", 3, COST, 2000, fcfs(lambda: ContinuousBatching(512)), start_up=2.0),
    )
    setting = AutoscalingSettings(
        most=4, out_below=0.0, in_above=1e9, out_patience=2.0, in_patience=2.0, cool_down=2.0, warm_up=1.0
    )
    setup = Setup(
        pools,
        rescheduling=ReschedulingSettings(),
        reschedule_every=0.5,
        autoscaling={pool.role: setting for pool in pools},
        autoscale_every=1.0,
        objectives=SLO(ttft=1.0, tpot=1.0),
        window=12.0,
    )
    return replace(setup, **more)  # type: ignore[arg-type]


def often(count: int = 150) -> list[Arrival]:
    return [Arrival(0.2 * number, 400, 20) for number in range(count)]


def test_in_the_simulator_too_a_pool_grows_where_the_objective_of_its_phase_is_missed() -> None:
    events = simulate(scaled(), often()).scale_events
    assert events and all(one.pool == "prefill" and "of requests met the objective" in one.reason
                          for one in events)  # fmt: skip
    assert not simulate(scaled(objectives=SLO()), often()).scale_events


@pytest.mark.parametrize("lends", [True, False])
def test_in_the_simulator_too_an_instance_that_can_be_spared_changes_its_role(lends: bool) -> None:
    """With it prefill need not wait for a new one: no instance is started, and the pools' sizes follow."""
    setup = scaled()
    wished = simulate(setup, often()).scale_events[0].at
    spare = replace(setup.autoscaling["decode"], in_above=20.0, in_patience=wished - 1.0)
    pools = tuple(replace(pool, lends=lends) for pool in setup.pools)
    cluster = simulate(
        replace(setup, pools=pools, autoscaling=setup.autoscaling | {"decode": spare}), often()
    )
    changed = [one for one in cluster.scale_events if "becomes a prefill instance" in one.reason]
    assert bool(changed) == lends
    assert all(record.finished for record in cluster.records.records.values())
    if lends:
        given = cluster.scale_events.index(changed[0])
        taken = cluster.scale_events[given + 1]
        assert (taken.pool, taken.at) == ("prefill", changed[0].at)
        assert any(one.instance.born == taken.at for one in cluster.members.values() if
                   one.pool.role == "prefill")  # fmt: skip


def test_in_the_simulator_too_a_forecast_makes_a_pool_grow_beforehand() -> None:
    """Answers run on and more come: full in a while, and by its forecast already."""
    setting = AutoscalingSettings(out_below=15.0, out_patience=0.0, warm_up=0.0, most=2)
    pool = PoolSetup("decode", 1, COST, 1200, fcfs(lambda: ContinuousBatching(512)), start_up=2.0)
    arrivals = [Arrival(0.5 * number, 300, 1000) for number in range(40)]

    def first(pool: PoolSetup) -> float:
        setup = Setup((pool,), autoscaling={"decode": setting}, autoscale_every=1.0)
        return simulate(setup, arrivals).scale_events[0].at

    assert first(replace(pool, forecast=HoltWinters, horizon=60)) < first(pool)


def test_without_migration_instances_that_are_to_go_still_go() -> None:
    setup = scaled(rescheduling=None)
    spare = replace(setup.autoscaling["decode"], in_above=20.0)
    cluster = simulate(replace(setup, autoscaling={"decode": spare}), often())
    assert {one.pool for one in cluster.scale_events} == {"decode"}
    assert cluster.retired and len(cluster.retired) >= len(cluster.scale_events) - 1, "but for the last one"


@pytest.mark.parametrize("most", [None, 4000])
def test_what_requests_ask_for_is_not_what_their_answers_have(most: int | None) -> None:
    """Who reserves the longest has room for two at a time of those that ask for 4,000 tokens."""
    pool = PoolSetup(
        "decode", 1, COST, 600, lambda: (FCFSQueue(), ReserveMax(ContinuousBatching(512), 600 * 16))
    )
    cluster = simulate(Setup((pool,), max_tokens=most), [Arrival(0.0, 100, 50)] * 4)
    assert [record.tokens for record in cluster.records.records.values()] == [50] * 4
    waited = [record.ttft for record in cluster.records.records.values()]
    assert (max(waited) > 0.4) == (most is not None)


@pytest.mark.parametrize("coasting", [True, False])
def test_an_answer_ends_at_what_was_asked_for_whether_steps_are_leapt_over_or_not(coasting: bool) -> None:
    cluster = simulate(replace(two_pools(coasting=coasting), max_tokens=40), [Arrival(0.0, 100, 300)])
    assert cluster.records.records["0"].tokens == 40
    assert summarise(cluster)["invariants"]["every_answer_whole"]


@pytest.mark.parametrize("coasting", [True, False])
def test_an_answer_ends_where_the_context_does_whether_steps_are_leapt_over_or_not(coasting: bool) -> None:
    cluster = simulate(replace(two_pools(coasting=coasting), max_length=180), [Arrival(0.0, 100, 300)])
    assert cluster.records.records["0"].tokens == 80
    assert summarise(cluster)["invariants"]["every_answer_whole"]


def test_two_transfers_over_one_link_take_twice_as_long() -> None:
    """512 tokens of 131,072 bytes at 0.1 GB/s: 0.67 s; the second request waits for the first."""
    arrivals = [Arrival(0.0, 512, 3), Arrival(0.0, 512, 3)]
    setup = two_pools(bandwidth=0.1e9)
    alone = simulate(setup, arrivals[:1]).records.records["0"].e2e
    shared = Setup(setup.pools, LinkSettings(0.1e9, 0.0003, shared=True), scheduler=setup.scheduler)
    both = [record.e2e for record in simulate(shared, arrivals).records.records.values()]
    assert alone > 0.6
    assert max(both) == pytest.approx(alone + 0.67, rel=0.05)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("until", [math.inf, 7.0], ids=["to the end", "cut short"])
def test_leaping_over_steps_charges_tenants_as_single_steps_do(seed: int, until: float) -> None:
    gaps = {}

    def run(*, coasting: bool) -> tuple[dict[str, records.Record], dict[str, float]]:
        counters = Counters()
        pools = tuple(
            PoolSetup(role, 2, COST, 150, lambda: (FairQueue(counters), ContinuousBatching(512)))
            for role in ("prefill", "decode")
        )
        tenants = [replace(one, tenant="ab"[i % 3 > 0]) for i, one in enumerate(requests(seed))]
        cluster = simulate(Setup(pools, coasting=coasting), tenants, until=until)
        gaps[coasting] = len(cluster.records.gaps)
        return cluster.records.records, counters.service

    assert run(coasting=True) == run(coasting=False)
    assert gaps[True] < gaps[False], "nothing was leapt over"


def test_prefix_blocks_are_computed_once() -> None:
    arrivals = [Arrival(float(i), 2048, 2, prefix=(1, 2, 3, 4)) for i in range(4)]
    pools = (PoolSetup("decode", 1, COST, 600, fcfs(lambda: ContinuousBatching(512)), prefix_cache=True),)
    cluster = simulate(Setup(pools), arrivals)
    assert (
        cluster.members["decode-0"].instance.status().prefix_hits == 3 * 2032
    )  # the last token's block is not


def test_a_tenants_counter_is_one_over_all_instances_and_phases() -> None:
    """Each counter ends at just what its tenant's requests cost, prompts and answers, wherever they ran."""
    counters = Counters()
    tenants = [Arrival(a.at, a.prompt_tokens, a.output_tokens, tenant="ab"[i % 2]) for i, a in
               enumerate(requests(2))]  # fmt: skip
    pools = tuple(
        PoolSetup(role, 2, COST, 150, lambda: (FairQueue(counters), ContinuousBatching(512)))
        for role in ("prefill", "decode")
    )
    cluster = simulate(Setup(pools), tenants)
    assert cluster.handoffs > 0 and summarise(cluster)["preemptions"] > 0
    for tenant in "ab":
        mine: Sequence[Arrival] = [one for one in tenants if one.tenant == tenant]
        exact = sum(one.prompt_tokens + 2 * one.output_tokens for one in mine)
        lifted = counters.service[tenant] - counters.lifted.get(tenant, 0.0)
        assert lifted == pytest.approx(exact)


def test_quantiles_count_each_value_by_its_weight() -> None:
    assert distribution([1.0, 2.0, 3.0], [98, 1, 1]) == {
        "mean": pytest.approx(1.03), "p50": 1.0, "p90": 1.0, "p95": 1.0, "p99": 2.0, "max": 3.0,
    }  # fmt: skip


def test_very_many_gaps_are_counted_to_five_digits(monkeypatch: pytest.MonkeyPatch) -> None:
    """So memory has a bound, and the figures stay what they are."""
    monkeypatch.setattr(records, "MOST_GAPS", 1000)
    rng, seen = Random(1), records.Records(lambda request_id: None)
    values = [rng.uniform(0.001, 2.0) for _ in range(300)]
    gaps = [(rng.choice(values), rng.randint(1, 9)) for _ in range(10_000)]
    for seconds, weight in gaps:
        seen._gap(seconds, weight)
    assert len(seen.gaps) <= 1000 and sum(seen.weights) == sum(weight for _, weight in gaps)
    exact = distribution((one for one, _ in gaps), (weight for _, weight in gaps))
    assert distribution(seen.gaps, seen.weights) == pytest.approx(exact, rel=5e-5)
