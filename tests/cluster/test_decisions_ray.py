"""The running cluster's decisions: recorded, decided again alike, and explained."""

from __future__ import annotations

import asyncio
from pathlib import Path

import httpx
import pytest

from cluster.policies import scheduler_settings
from cluster.recording import read_tape
from global_scheduler.replay import Agreement, replay
from global_scheduler.scheduler import Scheduler
from global_scheduler.tape import Decided
from tests.cluster.conftest import Cluster


async def ask(url: str, number: int) -> None:
    """A request whose prompt and answer have lengths of their own."""
    body = {
        "model": "tiny",
        "prompt": [3 + (number * 7 + at) % 40 for at in range(5 + number * 11 % 90)],
        "max_tokens": 4 + number % 9,
    }
    async with httpx.AsyncClient(trust_env=False, timeout=60.0) as client:
        headers = {"x-request-id": f"recorded-{number}"}
        (await client.post(f"{url}/v1/completions", json=body, headers=headers)).raise_for_status()


def load(cluster: Cluster, count: int) -> None:
    async def main() -> None:
        url, at_once = cluster.url, asyncio.Semaphore(8)

        async def one(number: int) -> None:
            async with at_once:
                await ask(url, number)

        await asyncio.gather(*(one(number) for number in range(count)))

    asyncio.run(main())


def again(cluster: Cluster, placement: str) -> Agreement:
    assert cluster.config.scheduler.record is not None
    tape = list(read_tape(Path(cluster.config.scheduler.record)))
    chosen = cluster.config.scheduler.model_copy(update={"placement": placement})
    settings = scheduler_settings(cluster.config.model_copy(update={"scheduler": chosen}))
    return replay(tape, Scheduler(settings))


def test_what_the_controller_heard_makes_it_decide_the_same_again(cluster: Cluster, full: bool) -> None:
    count = 100 if full else 24
    load(cluster, count)
    agreement = again(cluster, cluster.config.scheduler.placement)
    assert agreement.decisions >= count
    assert agreement.disagreements == ()


def test_mutant_another_policy_decides_otherwise(cluster: Cluster) -> None:
    load(cluster, 24)
    assert again(cluster, "round_robin").share < 0.9


def test_a_request_can_be_explained_by_its_name(cluster: Cluster) -> None:
    load(cluster, 1)
    told = cluster.control.explain("recorded-0")
    assert told[0].kind == "placement"
    assert "decode-" in told[0].outcome and told[0].reason


def test_the_tape_names_both_instances(cluster: Cluster) -> None:
    load(cluster, 8)
    assert cluster.config.scheduler.record is not None
    decided = [one for one in read_tape(Path(cluster.config.scheduler.record)) if isinstance(one, Decided)]
    assert {one.prefill.partition("-")[0] for one in decided} >= {"prefill", "decode"}, "some need no handoff"


@pytest.mark.parametrize("text", ["{}", "[]", '{"kind": "other"}', "no json"])
def test_what_is_no_recording_is_named_with_its_line(tmp_path: Path, text: str) -> None:
    file = tmp_path / "tape.jsonl"
    file.write_text(text + "\n")
    with pytest.raises(Exception, match=r"tape\.jsonl:1: not a line of a recording"):
        list(read_tape(file))
