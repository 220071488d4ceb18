"""How the YAML of manifests is written: ours well, and what is odd is told at its line."""

from __future__ import annotations

import subprocess
from pathlib import Path
from shutil import which

import pytest

from cluster.config import Config
from k8s.checks.style import notes
from k8s.render import files

ROOT = Path(__file__).resolve().parents[2]
RENDERED = {name: text for name, text in files(Config()).items() if name.endswith(".yaml")}


@pytest.mark.parametrize(
    ("text", "told"),
    [
        pytest.param("a: 1\n", [], id="well"),
        pytest.param("a: 1 \nb: 2\n", ["1:5: trailing spaces"], id="spaces"),
        pytest.param("a: 1\n  \n", ["2:1: trailing spaces"], id="spaces alone"),
        pytest.param("a: 1\r\nb: 2\n", ["1:5: the line ends with a carriage return"], id="CRLF"),
        pytest.param("a: |\n \tb\n", ["2:2: a tab in the indentation"], id="a tab"),
        pytest.param("a: 'b\tc'\n", [], id="a tab inside"),
        pytest.param("a: 1", ["1:5: the last line has no end"], id="no end"),
        pytest.param("a: 1\n\n\nb: 2\n", [], id="two blank lines"),
        pytest.param("a: 1\n\n\n\n\nb: 2\n", ["4:1: more than 2 blank lines"], id="four blank lines"),
    ],
)
def test_what_is_odd_is_told_at_its_line(text: str, told: list[str]) -> None:
    assert [f"{each.at}: {each.message}" for each in notes(text, "m")] == [f"m:{each}" for each in told]


def test_what_is_rendered_is_written_well() -> None:
    assert len(RENDERED) > 30
    assert [str(note) for name, text in RENDERED.items() for note in notes(text, name)] == []


@pytest.mark.skipif(which("yamllint") is None, reason="needs yamllint on the PATH")
def test_yamllint_finds_no_more() -> None:
    rules = "{extends: default, rules: {document-start: disable, line-length: disable}}"
    paths = [str(ROOT / "k8s" / name) for name in RENDERED]
    done = subprocess.run(
        ["yamllint", "--strict", "-d", rules, *paths], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
