"""tandem profile: a table that the simulator reads, and a linear cost that fits it."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from cluster.cli.main import build
from cluster.profiling import Step, table
from engine.cost_model import Batch, LinearCost
from simulator.cost_tables.fit import error, fit
from simulator.cost_tables.load import load
from tests.cluster.tiny_model import make_tiny_model

COST = LinearCost(0.004, 0.0, 2e-4, 3e-7)
STEPS = [
    Step("prefill", 1, new, before, COST.seconds(Batch(((new, before),))))
    for new in (1, 16, 128, 512)
    for before in (0, 512)
] + [
    Step("decode", batch, 1, context, COST.seconds(Batch((), batch, batch * context)))
    for batch in (1, 4, 16)
    for context in (64, 1024)
]


def test_the_fit_finds_the_cost_that_made_the_steps() -> None:
    points = [(step.work, step.seconds) for step in STEPS]
    found = fit(points)
    assert (found.base, found.per_token) == pytest.approx((COST.base, COST.per_token), rel=1e-3)
    assert found.per_context == pytest.approx(COST.per_context, rel=1e-2)
    assert error(found, points) < 1e-3


def test_nothing_is_fitted_to_a_negative_cost() -> None:
    points = [(Batch(((new, 0),)), 0.01 - 1e-6 * new) for new in (1, 100, 1000)]
    assert min(fit(points).base, fit(points).per_token, fit(points).per_context) >= 0


def test_the_simulator_reads_the_table(tmp_path: Path) -> None:
    file = tmp_path / "steps.csv"
    file.write_text(table(STEPS, system="here", model="tiny", version="1"))
    cost = load(f"{file}:system=here,model=tiny")
    for step in STEPS:
        assert cost.seconds(step.work) == pytest.approx(step.seconds, rel=1e-3)


def test_a_table_that_cannot_be_written_is_refused_before_anything_is_measured(tmp_path: Path) -> None:
    file = tmp_path / "missing" / "steps.csv"
    result = CliRunner().invoke(build(), ["profile", "--write", str(file), "--set", "model.path=/nowhere"])
    assert result.exit_code == 2
    assert f"mkdir -p {file.parent}" in result.stderr


def test_a_model_is_profiled(tmp_path: Path) -> None:
    file = tmp_path / "steps.csv"
    small = ("--batches", "1,2", "--contexts", "16,32", "--lengths", "1,8,16", "--cached", "16")
    model = ("--set", f"model.path={make_tiny_model(tmp_path / 'tiny')}", "--set", "engine.kv_memory=4Mi")
    result = CliRunner().invoke(
        build(), ["profile", "--write", str(file), "--system", "here", *small, *model]
    )
    assert result.exit_code == 0, result.output
    assert "per_token" in result.stdout
    cost = load(f"{file}:system=here,model=tiny")
    assert 0 < cost.seconds(Batch(((8, 0),))) < 1 and 0 < cost.seconds(Batch((), 2, 40)) < 1
