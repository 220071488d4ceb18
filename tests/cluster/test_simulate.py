"""tandem simulate: a config and a trace in, the same bytes out, and errors that say what to change."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from cluster.cli.main import build

MADE = "made:rate=6,prompt=100-400,output=20-60,requests=30"
COEFFICIENTS = {
    "engine": {"model": {"1": {
        "prefill": [18.1, 0.1019, 7.12e-6], "decoding_smallbs": [19.9, 6.27e-4, 0.0385],
        "decoding_largebs": [7.17, 5.8e-4, 0.158], "decoding_large_small_bs_threshold": 95,
    }}}
}  # fmt: skip


@pytest.fixture
def cost(tmp_path: Path) -> str:
    file = tmp_path / "coefficients.json"
    file.write_text(json.dumps(COEFFICIENTS))
    return f"{file}:engine=engine,model=model"


def run(*arguments: str) -> Result:
    return CliRunner().invoke(build(), ["simulate", *arguments])


def test_equal_seeds_give_equal_bytes_and_others_don_t(cost: str) -> None:
    one, same, other = (
        run("--trace", MADE, "--cost", cost, "--seed", seed, "-o", "json").stdout for seed in ("1", "1", "2")
    )
    assert one == same != other
    report = json.loads(one)
    assert report["schema"] == "tandem.simulation/1" and report["requests"]["finished"] == 30
    assert report["handoffs"]["moved"] > 0


def test_two_configs_stand_side_by_side(cost: str, tmp_path: Path) -> None:
    for name, replicas in (("small", 1), ("large", 4)):
        (tmp_path / f"{name}.yaml").write_text(f"pools: {{decode: {{replicas: {replicas}}}}}\n")
    pair = "-f", str(tmp_path / "small.yaml"), "--compare", str(tmp_path / "large.yaml")
    text = run(*pair, "--trace", MADE, "--cost", cost).stdout
    assert "small.yaml" in text and "large.yaml" in text and "time to first token, p99" in text


def test_the_page_fetches_nothing(cost: str) -> None:
    page = run("--trace", MADE, "--cost", cost, "-o", "html").stdout
    assert page.startswith("<!doctype html>") and "<svg" in page
    assert "src=" not in page and "href=" not in page


@pytest.mark.parametrize(
    "setting",
    ["engine.queue=fair", "engine.admission=reserve_max", "engine.batch=decode_maximal"],
)
def test_every_policy_can_be_tried(cost: str, setting: str) -> None:
    result = run("--trace", MADE, "--cost", cost, "--set", setting, "-o", "json")
    assert json.loads(result.stdout)["requests"]["finished"] == 30


@pytest.mark.parametrize("setting", ["engine.queue=mlfq", "engine.batch=stall_free"])
def test_what_decides_by_the_cost_of_steps_asks_for_it(cost: str, setting: str) -> None:
    refused = run("--trace", MADE, "--cost", cost, "--set", setting)
    assert refused.exit_code == 2 and "engine.step_cost" in refused.stderr
    given = ("--set", "engine.step_cost.per_token=0.1", "--set", "engine.step_cost.floor=20.0")
    assert run("--trace", MADE, "--cost", cost, "--set", setting, *given).exit_code == 0


@pytest.mark.parametrize(
    ("trace", "message"),
    [("nowhere.csv", "cannot be read"), ("made:speed=3", "no speed"), ("made:rate=0", "made")],
)
def test_a_wrong_workload_is_named(cost: str, trace: str, message: str) -> None:
    result = run("--trace", trace, "--cost", cost)
    assert result.exit_code == 2
    assert message in result.stderr
