"""The simulator itself: it repeats to the byte, leaps change nothing, nothing is lost, links are shared."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from random import Random

import pytest

from decode_pool.continuous_batching import ContinuousBatching
from engine.cost_model import LinearCost
from engine.queues.fair import FairQueue
from engine.service import Counters
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


def test_two_transfers_over_one_link_take_twice_as_long() -> None:
    """512 tokens of 131,072 bytes at 0.1 GB/s: 0.67 s; the second request waits for the first."""
    arrivals = [Arrival(0.0, 512, 3), Arrival(0.0, 512, 3)]
    setup = two_pools(bandwidth=0.1e9)
    alone = simulate(setup, arrivals[:1]).records.records["0"].e2e
    shared = Setup(setup.pools, LinkSettings(0.1e9, 0.0003, shared=True), scheduler=setup.scheduler)
    both = [record.e2e for record in simulate(shared, arrivals).records.records.values()]
    assert alone > 0.6
    assert max(both) == pytest.approx(alone + 0.67, rel=0.05)


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
