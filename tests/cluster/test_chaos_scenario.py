"""A scenario from a file: the one that the docs show, and what is said of mistakes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from cluster.chaos.scenario import Fault, Load, Scenario, load
from cluster.cli.main import build
from engine.errors import ConfigError

DOCS = Path(__file__).parents[2] / "docs" / "reliability.md"
FAULTS = "faults: [{kind: kill}]"
KINDS = "one of kill, kill_node, stop, terminate, "

MISTAKES = [
    (FAULTS, "1:1: name: is required: text"),
    ("name: x", "1:1: faults: is required: a list of at least 1 mappings"),
    ("name: x\nfaults: []", "2:9: faults: expected a list of at least 1 mappings, got a list"),
    ("name: x\nfaults: [kill]", "2:10: faults.0: expected a mapping with the keys kind, target, "),
    ("name: x\nfaults: [{target: decode}]", f"2:10: faults.0.kind: is required: {KINDS}"),
    ("name: x\nfaults: [{kind: explode}]", f"2:17: faults.0.kind: expected {KINDS}"),
    (
        "name: x\nfaults: [{kind: kill, fault: kill}]",
        "2:23: faults.0.fault: unknown key, expected one of kind, target, at, every, ",
    ),
    ("name: x\nfaults: [{kind: kill, cout: 1}]", '2:23: faults.0.cout: unknown key, did you mean "count"?'),
    (
        "name: x\nfaults: [{kind: kill, duration: 1s}]",
        "2:23: faults.0.duration: unknown key, expected one of ",
    ),
    (
        "name: x\nfaults: [{kind: kill, at: 1}]",
        "2:27: faults.0.at: expected duration with its unit, such as 250ms or 5s, got 1",
    ),
    ("name: x\nfaults: [{kind: link}]", "2:10: faults.0: a fault of kind link needs link"),
    ("name: x\nfaults: [{kind: apply}]", "2:10: faults.0: a fault of kind apply needs settings"),
    (
        f"name: x\nload: {{max_tokens: 30}}\n{FAULTS}",
        "2:20: load.max_tokens: expected a list of 2, each integer ≥ 1, got 30",
    ),
    (f"name: x\nload: {{max_tokens: [30]}}\n{FAULTS}", "2:20: load.max_tokens: expected a list of 2, each "),
    (f"name: x\nload: {{max_tokens: [1, 2, 3]}}\n{FAULTS}", "2:20: load.max_tokens: expected a list of 2, "),
    (f"name: x\nload: {{choices: [1, 0]}}\n{FAULTS}", "2:21: load.choices.1: expected integer ≥ 1, got 0"),
    (
        f"name: x\nload: {{max_tokens: [200, 60]}}\n{FAULTS}",
        "2:20: load.max_tokens: expected the smaller number first, got [200, 60]",
    ),
]


@pytest.mark.parametrize(("text", "message"), MISTAKES, ids=[text.splitlines()[-1] for text, _ in MISTAKES])
def test_a_mistake_is_told_with_its_place_and_what_was_expected(
    tmp_path: Path, text: str, message: str
) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError) as caught:
        load(str(path))
    told = [line for line in caught.value.message.splitlines() if not line.startswith("    ")]
    assert any(line.startswith(f"{path}:{message}") for line in told), told


def test_an_empty_file_is_named(tmp_path: Path) -> None:
    path = tmp_path / "empty.yaml"
    path.write_text("")
    with pytest.raises(ConfigError) as caught:
        load(str(path))
    assert f"{path}: name: is required" in caught.value.message


def test_a_file_that_is_no_text_is_named(tmp_path: Path) -> None:
    path = tmp_path / "bad.yaml"
    path.write_bytes(b"name: \xff")
    with pytest.raises(ConfigError, match=r"bad\.yaml: cannot be read as UTF-8 text"):
        load(str(path))


def test_a_program_is_told_of_a_mistake_as_json(tmp_path: Path) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text(f"name: x\nload: {{max_tokens: 30}}\n{FAULTS}")
    result = CliRunner().invoke(build(), ["chaos", "-f", str(path), "-o", "json"])
    assert result.exit_code == 2
    assert "expected a list of 2, each integer ≥ 1, got 30" in json.loads(result.stdout)["error"]["message"]


def test_the_scenario_of_the_docs_can_be_read_and_names_every_key_of_the_load(tmp_path: Path) -> None:
    text = DOCS.read_text(encoding="utf-8").partition("```yaml\n")[2].partition("```")[0]
    path = tmp_path / "my-scenario.yaml"
    path.write_text(text)
    scenario = load(str(path))
    assert {*Scenario.model_fields} == scenario.model_fields_set
    assert {*Load.model_fields} - {"seed"} == scenario.load.model_fields_set
    told = set().union(*(fault.model_fields_set for fault in scenario.faults))
    assert {"kind", "target", "at", "every", "count", "lasting", "settled"} <= told
    assert scenario.faults[0] == Fault(kind="migrate", target="decode", at=0.5, every=0.5, count=40)
