"""SARATHI: one chunk and all decodes in steps that fill the tiles, and what that is worth."""

from __future__ import annotations

from random import Random
from statistics import median

import pytest
from hypothesis import given
from hypothesis import strategies as st

from decode_pool.continuous_batching import ContinuousBatching
from engine.cost_model import Batch
from engine.planner import Planner
from engine.sequence import Phase
from prefill_pool.chunked_prefill import ChunkedPrefill
from prefill_pool.decode_maximal import DecodeMaximal
from simulator.network import LinkSettings
from simulator.papers import sarathi
from simulator.papers.arms import MISTRAL_7B
from simulator.papers.pipeline import Pipeline
from simulator.setup import PoolSetup, Setup, fcfs
from simulator.simulate import simulate
from simulator.workload.arrivals import Arrival
from tests.engine.mutants import mutate
from tests.engine.policies import state
from tests.engine.toy import Bench, alone, prompt, request

COST = sarathi.TiledCost()


def broken(seed: int) -> str:
    """What is wrong with the batch of a random state, "" if nothing."""
    running, waiting = state(Random(seed))
    shares = DecodeMaximal(32, 16).share(running, waiting, 0.0)
    decodes = [one for one in running if one.phase is Phase.DECODE]
    chunks = [share for share in shares if share.sequence not in decodes]
    if len(shares) - len(chunks) != len(decodes):
        return "a decode is held back"
    if len(chunks) > 1:
        return "two chunks"
    if any(one.phase is Phase.PREFILL for one in running) and chunks and chunks[0].sequence in waiting:
        return "a new prompt before one under way"
    for share in chunks:
        rest = len(share.sequence) - max(share.sequence.computed, share.sequence.cached)
        total = sum(one.tokens for one in shares)
        if share.tokens < 1 or (share.tokens < rest and total % 16):
            return "a torn tile"
    return ""


@given(st.integers(0, 2**32))
def test_a_step_has_one_chunk_all_decodes_and_whole_tiles(seed: int) -> None:
    assert broken(seed) == ""


@pytest.mark.parametrize(
    ("old", "new"),
    [("step - decodes", "self.chunk + 1"), ("step - decodes", "self.chunk"), ("break", "continue")],
    ids=["a torn tile", "the tile rule on the chunk alone", "several chunks"],
)
def test_the_rule_rejects_wrong_batches(monkeypatch: pytest.MonkeyPatch, old: str, new: str) -> None:
    mutate(monkeypatch, DecodeMaximal, "share", old, new)
    assert {broken(seed) for seed in range(300)} - {""}


def read_in_tiles() -> None:
    """Long prompts, a chunk a step, beside decodes: the tokens are those of each alone."""
    bench = Bench(total=120, policy=DecodeMaximal(16, 8))
    requests = [request(f"r{i}", prompt(7 + 13 * i % 90, i % 3), 5 + i % 9) for i in range(20)]
    for one in requests:
        bench.core.submit(one)
        bench.step()
    bench.drain()
    assert [bench.output(one.id) for one in requests] == [alone(one) for one in requests]


def test_chunks_change_no_token() -> None:
    read_in_tiles()


@pytest.mark.parametrize(
    ("old", "new"),
    [("        start,\n", "        0,\n"), ("if last else None", "")],
    ids=["positions begin anew with each chunk", "a token is drawn from every chunk"],
)
def test_wrong_chunks_would_be_noticed(monkeypatch: pytest.MonkeyPatch, old: str, new: str) -> None:
    mutate(monkeypatch, Planner, "_work", old, new)
    with pytest.raises((AssertionError, IndexError)):
        read_in_tiles()


def test_one_token_over_a_tile_costs_a_quarter_more() -> None:
    """256 tokens take 69.8 ms, 257 take 92.33."""
    over, whole = (COST.seconds(Batch(((tokens, 0),))) / tokens for tokens in (257, 256))
    assert over >= 1.25 * whole


def test_a_decode_that_rides_along_costs_a_fifth_at_most() -> None:
    alone = COST.seconds(Batch((), 4, 4096)) / 4
    chunk = COST.seconds(Batch(((252, 0),), 4, 4096)) - COST.seconds(Batch(((252, 0),)))
    assert chunk / 4 <= alone / 5


@pytest.mark.parametrize(
    ("length", "batch", "ratio", "published", "by_hand"),
    [(1024, 18, 14, 1.27, 1.39), (3072, 6, 50, 1.23, 1.36)],
)
def test_throughput_against_separate_batches(
    length: int, batch: int, ratio: int, published: float, by_hand: float
) -> None:
    """`by_hand` is what the paper's own points of step times come to in a steady state."""
    arrivals = sarathi.steady_mix(120, length, ratio)
    ours, apart, orca = (
        sarathi.throughput(arm, arrivals, batch=batch) for arm in ("SARATHI", "separate", "Orca")
    )
    assert ours >= 1.2 * apart and ours >= 1.1 * orca
    assert ours / apart == pytest.approx(by_hand, rel=0.05)
    assert published == pytest.approx(ours / apart, rel=0.15)


def test_orcas_gain_over_separate_batches_is_the_published_one() -> None:
    """1.11 at best: steps of whole prompts have no room left for decodes to ride along for nothing."""
    arrivals = sarathi.steady_mix(120, 1024, 14)
    orca, apart = (sarathi.throughput(arm, arrivals) for arm in ("Orca", "separate"))
    assert orca / apart == pytest.approx(1.11, rel=0.03)


def test_the_gain_is_greatest_where_decodes_just_fill_the_chunks() -> None:
    """P:D = C / (B - 1): 256 / 17 = 15, within a fifth."""
    gains = {}
    for ratio in (2.0, 4.0, 7.0, 10.0, 13.0, 15.0, 17.0, 22.0, 30.0, 60.0, 150.0):
        arrivals = sarathi.steady_mix(90, 1024, ratio)
        gains[ratio] = sarathi.throughput("SARATHI", arrivals) / sarathi.throughput("separate", arrivals)
    assert max(gains, key=lambda ratio: gains[ratio]) == pytest.approx(15.0, rel=0.2), gains


PROMPT, KV_BYTES, BANDWIDTH = 2048, 131_072, 3e9


def second_token(chunk: int) -> float:
    """Seconds until the first token that needs the KV at the decode instance, of a prompt in such chunks."""
    pools = (
        PoolSetup("prefill", 1, MISTRAL_7B, 1000, fcfs(lambda: ChunkedPrefill(chunk, 16))),
        PoolSetup("decode", 1, MISTRAL_7B, 1000, fcfs(lambda: ContinuousBatching(512))),
    )
    setup = Setup(pools, links=LinkSettings(BANDWIDTH, 1e-4), kv_bytes=KV_BYTES)
    cluster = simulate(setup, [Arrival(0.0, PROMPT, 2)])
    assert cluster.handoffs == 1
    return cluster.records.records["0"].last


def test_kv_that_travels_chunk_by_chunk_is_there_sooner_by_half_of_its_transfer() -> None:
    """Where it takes a fifth of the prefill or more: a chunk goes while the next is computed."""
    transfer = PROMPT * KV_BYTES / BANDWIDTH
    assert transfer >= 0.2 * MISTRAL_7B.seconds(Batch(((PROMPT, 0),)))
    assert second_token(512) <= second_token(PROMPT) - 0.5 * transfer


@pytest.mark.parametrize("arm", ["Orca", "SARATHI"])
def test_a_pipeline_of_one_stage_is_one_instance(arm: str) -> None:
    arrivals = sarathi.zipf_mix(40, Random(1))
    passage = sarathi.piped(arm, arrivals, stages=1)
    (member,) = sarathi.run(arm, arrivals, batch=27).members.values()
    assert passage.seconds == pytest.approx(member.instance.busy, rel=1e-9)
    assert passage.busy == pytest.approx([member.instance.busy], rel=1e-9)
    assert max(passage.bubbles.values()) == 0.0


def test_steps_of_one_size_leave_no_bubbles() -> None:
    """Micro-batches that decode one request each take turns without a gap once all are under way."""
    arrivals = [Arrival(0.0, 128, 20)] * 4
    passage = Pipeline(4, 1, lambda: DecodeMaximal(256, 128), Even()).run(arrivals)
    assert passage.seconds == pytest.approx(20 * 1.0 + 3 * 0.25)
    assert max(passage.bubbles.values()) == pytest.approx(0.0, abs=1e-9)


class Even:
    """Every step takes a second."""

    def seconds(self, batch: Batch) -> float:
        return 1.0


def test_even_steps_close_the_bubbles_of_a_pipeline(full: bool) -> None:
    """The paper has bubbles 6.29 times smaller and 1.91 times the pace, eight stages of GPT-3."""
    for stages, requests in ((4, 1500), (8, 1500)) if full else ((4, 600),):
        arrivals = sarathi.zipf_mix(requests, Random(9))
        orca, ours = (sarathi.piped(arm, arrivals, stages) for arm in ("Orca", "SARATHI"))
        assert orca.seconds >= 1.5 * ours.seconds
        assert median(orca.bubbles.values()) >= 4 * median(ours.bubbles.values())
        assert ours.utilisation >= 0.9 > orca.utilisation
