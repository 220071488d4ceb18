"""Workloads: what the readers make of each format, and that generators draw what they promise."""

from __future__ import annotations

import gzip
import statistics
from itertools import islice, pairwise
from pathlib import Path
from random import Random

import pytest

from engine.errors import ConfigError
from simulator.workload.arrivals import PREFIX_BLOCK, Arrival, prompt_of
from simulator.workload.generators import fixed, gamma, lognormal, make, poisson, power_law, uniform
from simulator.workload.traces import read_trace, runs
from tests.simulator.shared import shared


def written(folder: Path, name: str, text: str) -> Path:
    file = folder / name
    file.write_bytes(gzip.compress(text.encode()) if name.endswith(".gz") else text.encode())
    return file


def test_the_projects_own_csv_carries_tenants_and_prefixes(tmp_path: Path) -> None:
    text = "arrival_s,prompt_tokens,output_tokens,tenant,hash_ids\n1.5,600,7,3,0;28-29\n0.5,5,2,1,\n"
    assert read_trace(written(tmp_path, "own.csv.gz", text)) == [
        Arrival(0.5, 5, 2, tenant="1"),
        Arrival(1.5, 600, 7, tenant="3", prefix=(0, 28, 29)),
    ]


def test_azure_times_count_from_the_first_request(tmp_path: Path) -> None:
    text = (
        "TIMESTAMP,ContextTokens,GeneratedTokens\n"
        "2023-11-16 18:15:46.6805900,374,44\n2023-11-16 18:15:50.9951690,396,109\n"
    )
    first, second = read_trace(written(tmp_path, "azure.csv", text))
    assert (first.at, first.prompt_tokens, first.output_tokens) == (0.0, 374, 44)
    assert second.at == pytest.approx(4.314579)


def test_mooncake_lines_are_milliseconds_with_block_ids(tmp_path: Path) -> None:
    text = '{"timestamp": 3000, "input_length": 700, "output_length": 5, "hash_ids": [4, 9]}\n'
    assert read_trace(written(tmp_path, "mooncake.jsonl", text)) == [Arrival(3.0, 700, 5, prefix=(4, 9))]


def test_burstgpt_requests_that_failed_are_left_out(tmp_path: Path) -> None:
    text = (
        "Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type\n"
        "5,ChatGPT,472,18,490,Conversation log\n45,ChatGPT,1087,0,1087,Conversation log\n"
        "50,GPT-4,10,3,13,API log\n"
    )
    assert read_trace(written(tmp_path, "burst.csv", text)) == [Arrival(0.0, 472, 18), Arrival(45.0, 10, 3)]


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("a,b\n1,2\n", ":1: no known trace has the columns"),
        ("arrival_s,prompt_tokens,output_tokens\n0,1,1\n1,x,3\n", ":3: "),
        ('{"timestamp": 1}\n', ":1: not a line of a Mooncake trace"),
    ],
)
def test_a_wrong_line_is_named(tmp_path: Path, text: str, place: str) -> None:
    with pytest.raises(ConfigError, match=place):
        read_trace(written(tmp_path, "bad", text))


def test_runs_are_inclusive() -> None:
    assert runs("0;28-31") == (0, 28, 29, 30, 31)


def test_equal_prefix_blocks_give_equal_tokens_and_nothing_else_does() -> None:
    one = prompt_of(Arrival(0, 1000, 1, prefix=(7, 8)), 1)
    other = prompt_of(Arrival(0, 700, 1, prefix=(7, 9)), 2)
    plain = prompt_of(Arrival(0, 700, 1), 7)
    assert one[:512] == other[:512] and len(one) == 1000 and len(other) == 700
    assert not set(one[512:]) & set(other[512:]) and not set(plain) & set(one + other)


@pytest.mark.parametrize("cv", [0.0, 0.5, 1.0, 4.0])
def test_gaps_have_the_rate_and_the_variation_asked_for(cv: float) -> None:
    times = list(islice(gamma(5.0, cv, Random(1)), 20_000))
    gaps = [b - a for a, b in pairwise(times)]
    mean = statistics.fmean(gaps)
    assert mean == pytest.approx(0.2, rel=0.1)
    assert statistics.pstdev(gaps) / mean == pytest.approx(cv, rel=0.1, abs=1e-6)


def test_equal_seeds_give_equal_workloads() -> None:
    def drawn(seed: int) -> list[Arrival]:
        rng = Random(seed)
        return make(poisson(3.0, rng), uniform(1, 9, rng), fixed(4), 50, tenant="a")

    assert drawn(7) == drawn(7) != drawn(8)


def test_lengths_follow_their_laws() -> None:
    rng = Random(3)
    normal = lognormal(1730, 5700, rng)
    logs = sorted(normal() for _ in range(20_000))
    assert logs[10_000] == pytest.approx(1730, rel=0.05) and logs[18_000] == pytest.approx(5700, rel=0.05)
    draw = power_law(256, 6144, rng)
    tail = [draw() for _ in range(50_000)]
    assert statistics.fmean(tail) == pytest.approx(256, rel=0.05)
    assert max(tail) <= 6144 and min(tail) >= 1 and statistics.median(tail) < 64


def test_the_mooncake_slice_has_the_published_share_of_prefixes() -> None:
    """An unlimited cache hits 49,930 of 146,464 blocks, 25,555,226 of 73,604,194 prompt tokens."""
    arrivals = read_trace(shared("traces/mooncake_conversation_0-30min.csv.gz"))
    seen: set[int] = set()
    blocks = tokens = requests = 0
    for arrival in arrivals:
        hits = next((i for i, block in enumerate(arrival.prefix) if block not in seen), len(arrival.prefix))
        blocks += hits
        tokens += min(hits * PREFIX_BLOCK, arrival.prompt_tokens)
        requests += hits > 0
        seen.update(arrival.prefix)
    assert (blocks, sum(len(one.prefix) for one in arrivals)) == (49_930, 146_464)
    assert (tokens, sum(one.prompt_tokens for one in arrivals)) == (25_555_226, 73_604_194)
    assert (requests, len(arrivals), len(seen)) == (5_718, 5_719, 96_534)


@pytest.mark.parametrize(
    ("name", "requests", "prompts", "outputs"),
    [
        ("azure2023_conv_0-29min", 9_743, 12_052_751, 2_155_580),
        ("azure2023_code_0-28min", 5_353, 10_857_844, 147_291),
        ("vtc_lmsys_27tenants", 1_500, 204_398, 384_297),
        ("servegen_msmall_1800s", 17_350, 2_152_214, 298_358),
    ],
)
def test_public_traces_are_read_whole(name: str, requests: int, prompts: int, outputs: int) -> None:
    arrivals = read_trace(shared(f"traces/{name}.csv.gz"))
    assert len(arrivals) == requests
    assert sum(one.prompt_tokens for one in arrivals) == prompts
    assert sum(one.output_tokens for one in arrivals) == outputs
