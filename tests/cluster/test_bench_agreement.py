"""tandem bench agreement says how far a configuration agrees with float32."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from cluster.cli.main import build
from tests.cluster.tiny_model import make_tiny_model


def run(*arguments: object) -> Result:
    return CliRunner().invoke(build(), ["bench", "agreement", *map(str, arguments)])


@pytest.fixture
def settings(tmp_path: Path) -> list[object]:
    model = make_tiny_model(tmp_path / "tiny")
    return ["--set", f"model.path={model}", "--set", f"cache.directory={tmp_path}/cache", "--tokens", 6]


def test_float32_agrees_with_itself(settings: list[object], tmp_path: Path) -> None:
    (tmp_path / "prompts.json").write_text(json.dumps(["one text", {"text": "and another"}]))
    result = run(tmp_path / "prompts.json", *settings, "-o", "json")
    (found,) = json.loads(result.stdout)["items"]
    assert found["prompts"] == 2
    assert found["identical"] == found["agreed"] == 1
    assert found["divergence"] == pytest.approx(0, abs=1e-9)
    assert found["perplexity"] == pytest.approx(found["reference_perplexity"])


def test_a_file_that_is_no_list_of_texts_is_named(settings: list[object], tmp_path: Path) -> None:
    (tmp_path / "prompts.json").write_text("[3]")
    result = run(tmp_path / "prompts.json", *settings)
    assert result.exit_code == 2
    assert "prompts.json: not a JSON list of texts" in result.stderr
