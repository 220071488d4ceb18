"""tandem plan: pools apart where objectives bind, together where they don't, and a config that is one."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from cluster.cli.main import build

OPT_13B = {
    "prefill": [18.1, 0.1019, 7.12e-6], "decoding_smallbs": [19.9, 6.27e-4, 0.0385],
    "decoding_largebs": [7.17, 5.8e-4, 0.158], "decoding_large_small_bs_threshold": 95,
}  # fmt: skip
HALF = {
    key: [one / 4 for one in value] if isinstance(value, list) else value for key, value in OPT_13B.items()
}
MADE = "made:rate=6,prompt=512,output=64,requests=100"
BOUND, LOOSE = "ttft=400ms,tpot=40ms", "ttft=400ms,tpot=100ms"
SLOW = ("--node-gpus", "1", "--bandwidth", "3.125", "--shared-link")


@pytest.fixture
def cost(tmp_path: Path) -> str:
    """Two GPUs are four times as fast as one, so that a plan that may takes both."""
    file = tmp_path / "coefficients.json"
    file.write_text(json.dumps({"engine": {"model": {"1": OPT_13B, "2": HALF}}}))
    return f"{file}:engine=engine,model=model"


def plan(cost: str, slo: str, *more: str) -> Result:
    return CliRunner().invoke(
        build(),
        ["plan", "--trace", MADE, "--cost", cost, "--slo", slo, "--gpus", "3", "--kv-bytes", "820000",
         "--set", "engine.token_budget=512", *more],
    )  # fmt: skip


@pytest.mark.parametrize(
    ("slo", "links", "answer"),
    [(BOUND, (), "disaggregate: 2 prefill"), (LOOSE, (), "colocate"), (BOUND, SLOW, "colocate")],
    ids=["objectives bind", "loose for decode", "one slow link"],
)
def test_it_answers_colocate_where_nothing_is_gained_apart(
    cost: str, slo: str, links: tuple[str, ...], answer: str
) -> None:
    told = plan(cost, slo, *links)
    assert told.exit_code == 0 and answer in told.stdout, told.output


def test_the_config_that_it_writes_is_valid_and_has_the_pools(cost: str, tmp_path: Path) -> None:
    file = tmp_path / "planned.yaml"
    assert plan(cost, BOUND, "--write", str(file)).exit_code == 0
    assert CliRunner().invoke(build(), ["config", "validate", str(file)]).exit_code == 0
    text = file.read_text()
    assert text.startswith("# 2 prefill (1 GPU) + 1 decode (1 GPU):") and "replicas: 2" in text


def test_parallelism_that_is_not_built_is_refused_by_name(cost: str, tmp_path: Path) -> None:
    file = tmp_path / "planned.yaml"
    told = plan(cost, BOUND, "--tensor", "1", "--tensor", "2", "--write", str(file))
    assert told.exit_code != 0 and not file.exists()
    assert "tensor parallelism 2" in " ".join(told.output.split())
