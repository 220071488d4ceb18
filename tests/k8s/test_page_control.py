"""docs/kubernetes.md: its lines that ask the controller, typed at a real one.

It has no machines, so that no instance ever comes: what would wait for them is told not to.
"""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest
from typer.testing import CliRunner

from tests.k8s.test_docs import commands
from tests.k8s.test_operator_command import controller
from tests.k8s.trees import command_line

ADDRESS = "127.0.0.1:8002"
"""Where the page has the controller's port forwarded to."""


def test_the_lines_that_ask_the_controller_are_answered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tandem.yaml").write_text("pools:\n  decode:\n    max_replicas: 7\n")
    lines = commands("tandem --address")
    assert len(lines) >= 5 and all(ADDRESS in line for line in lines)
    with controller() as (made, address):
        assert made.scaler.scaling["decode"].most == 64
        for line in lines:
            words = shlex.split(line.replace(ADDRESS, address).replace("$CONTROL_TOKEN", "secret"))
            words += ["--no-wait"] if {"apply", "restart"} & set(words) else []
            done = CliRunner().invoke(command_line(), words[1:])
            assert done.exit_code == 0, (line, done.stdout, done.stderr)
        assert made.scaler.scaling["decode"].most == 7
