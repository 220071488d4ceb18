"""docs/operating.md is typed from top to bottom, on a cluster of its own with a tiny model."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from cluster.chaos.scenario import SHIPPED
from cluster.local_ray import MARKER
from cluster.ports import free_port
from tests.cluster.tiny_model import make_tiny_model

PAGE = (Path(__file__).resolve().parents[2] / "docs/operating.md").read_text(encoding="utf-8")
SECTIONS = dict(re.findall(r"^## (.*?)\n(.*?)(?=^## |\Z)", PAGE, re.MULTILINE | re.DOTALL))
LIMIT = 900.0
TOKENS = 20_000
"""A tiny model would have written 600 before the next lines look at the request and do something about it."""
NOT_TYPED = {
    "make install": "it is installed where tests run",
    ". .venv/bin/activate": "the tests' own environment is",
    "deactivate": "the tests' own environment is",
    "rm -rf .venv ~/.cache/tandem ~/.local/state/tandem": "they are the tests' own",
}
"""Lines that a test leaves out, each with the reason."""


def blocks(text: str) -> list[str]:
    """What is to be typed."""
    return re.findall(r"^```sh\n(.*?)^```", text, re.MULTILINE | re.DOTALL)


def patient(folder: Path) -> Path:
    """The scenario kill-decode without bounds on time."""
    scenario = yaml.safe_load((SHIPPED / "kill-decode.yaml").read_text(encoding="utf-8"))
    scenario["expect"] = {**scenario.get("expect", {}), "resume": "0s", "pause": "0s"}
    path = folder / "patient.yaml"
    path.write_text(yaml.safe_dump(scenario), encoding="utf-8")
    return path


def test_the_day_has_its_hours_in_order() -> None:
    assert list(SECTIONS) == [
        "Install", "Start", "Look", "Scale", "Drain", "Upgrade", "Break something", "Repair", "Uninstall"
    ]  # fmt: skip
    assert [name for name, text in SECTIONS.items() if not blocks(text)] == []


def test_what_is_left_out_stands_on_the_page() -> None:
    lines = "\n".join(blocks(PAGE)).splitlines()
    assert [line for line in NOT_TYPED if line not in lines] == []


def test_every_line_does_what_it_should(tmp_path: Path, full: bool) -> None:
    if not full:
        pytest.skip("a cluster of its own, with a load that is broken on purpose: only with --full")
    if shutil.which("jq") is None or shutil.which("curl") is None:
        pytest.skip("needs jq and curl on the PATH")
    port = free_port()
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("TANDEM_", "RAY_"))}
    environment |= {
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{environment['PATH']}",
        "HOME": str(tmp_path),
        "XDG_STATE_HOME": str(tmp_path / "state"),
        "XDG_CACHE_HOME": str(tmp_path / "cache"),
        "NO_COLOR": "1",
        "TANDEM_MODEL__PATH": str(make_tiny_model(tmp_path / "tiny", context=32_768)),
        "TANDEM_MODEL__NAME": "SmolLM2-135M-Instruct",
        "TANDEM_ENGINE__KV_MEMORY": "48Mi",
        "TANDEM_ENGINE__THREADS": "1",
        "TANDEM_GATEWAY__PORT": str(port),
    }
    environment.pop(MARKER, None)
    environment.pop("COLUMNS", None)  # which pytest-xdist sets: what is piped is cut off then
    lines = [line for line in "\n".join(blocks(PAGE)).splitlines() if line not in NOT_TYPED]
    text = "\n".join(lines).replace("8000", str(port)).replace('"max_tokens": 600', f'"max_tokens": {TOKENS}')
    # How long streams stand still is for the command to measure: here many things share the machine.
    text = text.replace("chaos -f kill-decode", f"chaos -f {patient(tmp_path)}")
    script = f"set -e\ntrap 'tandem down || true' EXIT\n{text}\ntrap - EXIT\n"
    done = subprocess.run(
        ["bash", "-c", script], cwd=tmp_path, env=environment,
        capture_output=True, text=True, timeout=LIMIT, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-6000:]
    assert "passed" in done.stdout, "the verdict of chaos"
    for name in ("saga", "epic"):
        stream = (tmp_path / f"{name}.txt").read_text()
        assert '"finish_reason":"length"' in stream and stream.rstrip().endswith("data: [DONE]"), name
    written = [line for line in done.stdout.splitlines() if line.startswith("tokens: ")]
    # Of tale and epic in `describe`, of saga in the line that is looked for; chaos prints one of its own.
    assert sum(f"{TOKENS} written" in line for line in written) == 3, written
    assert " died " in done.stdout, done.stdout[-6000:]
    moves = done.stdout.partition("is drained")[2][:2000]
    assert " committed" in moves, moves
